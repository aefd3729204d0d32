/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The verdict on one packet. What must never be cut off passes first. Then, of an arriving one: anomalies,
 * operators' rules (one that allows ends it, so what it allows is never blocked), an exact address, prefixes
 * from the longest to the shortest, and the budgets of SYNs. A live drop entry always wins: neither an
 * expired entry, nor one in audit mode or with a rate that is not used up, hides a wider one that drops. Of a
 * leaving one: the rules.
 */
#ifndef TOLLWARD_GUARD_H
#define TOLLWARD_GUARD_H

#include "blocks.h"
#include "rules.h"

/* IPv6 prefixes that contain one address and are expired or only audit. Deeper nests are counted and pass. */
#define CIDR_CHAIN_MAX 16
#define EXACT_PREFIX   128
#define IPV4_LENGTHS   32 /* 0 to 31 */
#define NANOSECONDS    1000000000ULL

enum match {
	MATCH_NONE,
	MATCH_AUDIT,
	MATCH_DROP,
	MATCH_OVER_RATE,
	MATCH_EXEMPT,
};

/* Built in, so that not even an empty map takes the node from itself. */
static __always_inline int is_localhost(const struct address *address)
{
	const __u64 *half = (const __u64 *)address->bytes;

	if (half[0] != 0)
		return 0;
	return half[1] == bpf_cpu_to_be64(1) || half[1] == bpf_cpu_to_be64(0x0000ffff7f000001ULL);
}

/* Nearly all addresses are told from the few guarded ones by one word, for a tenth of what a look-up costs.
 */
static __always_inline int may_be_guarded(const struct address *address)
{
	const __u64 *half = (const __u64 *)address->bytes;
	__u64 hash = ((half[0] ^ half[1]) * GUARDED_FILTER_FACTOR) >> GUARDED_FILTER_SHIFT;
	__u32 zero = 0;
	const struct guarded_filter *filter = bpf_map_lookup_elem(&guarded_filter, &zero);

	return filter && (filter->bits[(hash >> 6) & 7] >> (hash & 63)) & 1;
}

static __always_inline int is_guarded_address(const struct address *address)
{
	return is_localhost(address) ||
	       (may_be_guarded(address) && bpf_map_lookup_elem(&guarded, address) != 0);
}

static __always_inline int is_management_port(__u16 port, const struct config *config)
{
	if (port == 0)
		return 0;
	for (int i = 0; i < MANAGEMENT_PORTS_MAX; i++)
		if (config->management_ports[i] == port)
			return 1;
	return 0;
}

/* Whether the arriving packet passes whatever is blocked, and why. A function of its own: verified once. */
__noinline int find_exemption(__u32 direction)
{
	__u32 zero = 0;
	struct packet *packet = bpf_map_lookup_elem(&packets, &direction);
	struct config *settings = bpf_map_lookup_elem(&config, &zero);

	if (!packet || !settings)
		return 0;
	packet->is_exemption_known = 1;
	if (is_guarded_address(&packet->flow.source))
		packet->exemption = COUNTER_GUARDED_ADDRESS;
	else if (packet->has_ports && is_management_port(packet->flow.destination_port, settings))
		packet->exemption = COUNTER_MANAGEMENT_PORT;
	return 0;
}

/* Most packets are refused by nothing: this is asked only of those that something would refuse. */
static __always_inline int is_exempt(const struct packet *packet)
{
	if (!packet->is_exemption_known)
		find_exemption(DIRECTION_INGRESS);
	return packet->exemption != 0;
}

/* Once for each block, whichever CPU is first. */
static __noinline void report_first_hit(__u64 *hits, const struct first_hit *record)
{
	if (__sync_fetch_and_or(hits, HITS_TOLD) & HITS_TOLD)
		return;
	if (bpf_ringbuf_output(&first_hits, (void *)record, sizeof(*record), BPF_RB_NO_WAKEUP))
		count(COUNTER_FIRST_HIT_LOST);
}

static __always_inline int is_block_over_rate(const struct block_terms *terms)
{
	__u64 interval_ns;

	if (terms->packets_per_second == 0)
		return 1;
	interval_ns = NANOSECONDS / terms->packets_per_second;
	return is_peer_over(DIRECTION_INGRESS, BUCKET_BLOCK, terms->rule_id, interval_ns,
			    NANOSECONDS - interval_ns);
}

/* hits and terms are those of the block; verdict is the counter of packets that such a block drops. */
static __always_inline enum match match_block(__u64 *hits, const struct block_terms *terms,
					      struct packet *packet, __u32 verdict, __u32 prefix_length,
					      __u32 mode)
{
	enum match match = MATCH_DROP;
	__u64 before;

	if (terms->expires_ns != 0 && terms->expires_ns <= packet->now) {
		count(COUNTER_EXPIRED_SEEN);
		return MATCH_NONE;
	}
	before = __sync_fetch_and_add(hits, 1);
	if (terms->mode == BLOCK_RATE_LIMIT) {
		if (!is_block_over_rate(terms))
			return MATCH_NONE;
		match = MATCH_OVER_RATE;
		verdict = COUNTER_DROPPED_RATE;
	}
	if (mode != MODE_ENFORCE || terms->mode == BLOCK_AUDIT) {
		report(DIRECTION_INGRESS, EVENT_BLOCK, COUNTER_AUDITED, terms->rule_id, prefix_length);
		return MATCH_AUDIT;
	}
	if (!(before & HITS_TOLD)) {
		struct first_hit record = {
			.source = packet->flow.source,
			.rule_id = terms->rule_id,
			.prefix_length = prefix_length,
		};

		know_time(packet);
		record.at_ns = packet->now;
		report_first_hit(hits, &record);
	}
	report(DIRECTION_INGRESS, EVENT_BLOCK, verdict, terms->rule_id, prefix_length);
	return match;
}

static __always_inline __u32 ipv4_of(const struct address *address)
{
	__u32 found;

	__builtin_memcpy(&found, address->bytes + 12, 4);
	return bpf_ntohl(found);
}

/* Which prefix lengths to look for, of blocks that may cover the packet's source. */
static __always_inline __u64 lengths_around(const struct packet *packet)
{
	__u32 place = ipv4_of(&packet->flow.source) >> 16;
	const __u64 *lengths;

	if (packet->ethernet_protocol != ETH_P_IP)
		return BLOCK_LENGTH_EXACT;
	lengths = bpf_map_lookup_elem(&block_lengths4, &place);
	return lengths ? *lengths : 0;
}

/*
 * From the longest prefix that is in use around the address to the shortest. A trie would be asked for the
 * longest, and again: a hash asked for those few is faster, more so for an address that none covers.
 */
static __always_inline enum match match_cidr4(struct packet *packet, __u64 lengths, __u32 mode)
{
	__u32 address = ipv4_of(&packet->flow.source);
	enum match found = MATCH_NONE;

	lengths &= ~BLOCK_LENGTH_EXACT;
	for (int i = 0; i < IPV4_LENGTHS && lengths != 0; i++) {
		__u32 host_bits = lowest_bit(lengths);
		struct cidr4_key key = {.prefix_length = 32 - host_bits};
		__u32 prefix = bpf_htonl((__u64)address >> host_bits << host_bits);
		struct block_terms terms;
		struct block *block;
		enum match match;

		lengths &= lengths - 1;
		__builtin_memcpy(key.address, &prefix, 4);
		block = bpf_map_lookup_elem(&block_cidr4, &key);
		if (!block)
			continue;
		if (is_exempt(packet))
			return MATCH_EXEMPT;
		match = match_block(read_block(block, &terms), &terms, packet, COUNTER_DROPPED_CIDR,
				    key.prefix_length, mode);
		if (match >= MATCH_DROP)
			return match;
		if (match == MATCH_AUDIT)
			found = MATCH_AUDIT;
	}
	return found;
}

/* The trie gives the longest prefix; asking again with one bit less than it had gives the next wider one. */
static __always_inline enum match match_cidr6(struct packet *packet, __u32 mode)
{
	struct cidr6_key key = {.prefix_length = 128};
	enum match found = MATCH_NONE;

	__builtin_memcpy(key.address, packet->flow.source.bytes, 16);
	for (int i = 0; i < CIDR_CHAIN_MAX; i++) {
		struct block *block = bpf_map_lookup_elem(&block_cidr6, &key);
		struct block_terms terms;
		enum match match;

		if (!block)
			return found;
		if (is_exempt(packet))
			return MATCH_EXEMPT;
		match = match_block(read_block(block, &terms), &terms, packet, COUNTER_DROPPED_CIDR,
				    block->prefix_length, mode);
		if (match >= MATCH_DROP)
			return match;
		if (match == MATCH_AUDIT)
			found = MATCH_AUDIT;
		if (block->prefix_length == 0 || block->prefix_length > key.prefix_length)
			return found;
		key.prefix_length = block->prefix_length - 1;
	}
	count(COUNTER_CIDR_CHAIN_TOO_LONG);
	return found;
}

/* The verdict of the blocks on the arriving packet. A function of its own, to be verified by itself. */
__noinline int match_blocks(__u32 mode)
{
	__u32 direction = DIRECTION_INGRESS;
	struct packet *packet = bpf_map_lookup_elem(&packets, &direction);
	enum match match = MATCH_NONE;
	struct block_terms terms = {};
	__u64 *hits = 0;
	__u32 home = 0;
	enum match cidr;
	__u64 lengths;

	if (!packet)
		return COUNTER_PASSED;
	lengths = lengths_around(packet);
	if (lengths & BLOCK_LENGTH_EXACT && find_home(&packet->flow.source, &home))
		hits = find_exact(&packet->flow.source, home, &terms);
	if (hits) {
		if (is_exempt(packet))
			return packet->exemption;
		match = match_block(hits, &terms, packet, COUNTER_DROPPED_EXACT, EXACT_PREFIX, mode);
	}
	if (match == MATCH_DROP)
		return COUNTER_DROPPED_EXACT;
	if (match == MATCH_OVER_RATE)
		return COUNTER_DROPPED_RATE;
	cidr = packet->ethernet_protocol == ETH_P_IP ? match_cidr4(packet, lengths, mode)
						     : match_cidr6(packet, mode);
	if (cidr == MATCH_EXEMPT)
		return packet->exemption;
	if (cidr == MATCH_DROP)
		return COUNTER_DROPPED_CIDR;
	if (cidr == MATCH_OVER_RATE)
		return COUNTER_DROPPED_RATE;
	return match == MATCH_AUDIT || cidr == MATCH_AUDIT ? COUNTER_AUDITED : COUNTER_PASSED;
}

/* Whether there is a budget that the packet would draw from. */
static __always_inline int is_budgeted_syn(const struct packet *packet, const struct config *settings)
{
	return packet->flow.protocol == IPPROTO_TCP && packet->has_ports && is_pure_syn(packet->tcp_flags) &&
	       (settings->syn_source.interval_ns != 0 || settings->syn_port.interval_ns != 0);
}

/* Whether the source or the port of such a packet has used up its budget of SYNs. The port is asked only for
 * what its source may send. */
static __always_inline int is_syn_over(struct packet *packet, const struct config *settings)
{
	__u32 port = packet->flow.destination_port;
	__u64 *empty_ns;

	if (settings->syn_source.interval_ns != 0 &&
	    is_peer_over(DIRECTION_INGRESS, BUCKET_SYN_SOURCE, 0, settings->syn_source.interval_ns,
			 settings->syn_source.tolerance_ns))
		return 1;
	if (settings->syn_port.interval_ns == 0)
		return 0;
	know_time(packet);
	empty_ns = bpf_map_lookup_elem(&syn_ports, &port);
	return empty_ns && is_over(empty_ns, &settings->syn_port, 1, packet->now);
}

static __always_inline enum counter judge_by_policy(__u32 verdict, __u32 id, __u32 mode)
{
	if (mode != MODE_ENFORCE)
		verdict = COUNTER_AUDITED;
	report(DIRECTION_INGRESS, EVENT_POLICY, verdict, id, 0);
	return verdict;
}

/* How many rules there are for packets of this direction. */
static __always_inline __u32 count_rules(__u32 direction)
{
	__u32 zero = 0;
	const struct rule_set *set = bpf_map_lookup_elem(&rule_set, &zero);

	if (!set)
		return 0;
	return direction == DIRECTION_INGRESS ? set->ingress_rules : set->egress_rules;
}

/* Only where there are rules, fragments are followed, and the time must be exact. */
static __always_inline void prepare_for_rules(struct packet *packet)
{
	know_time(packet);
	know_transport(packet);
	if (packet->is_fragment || packet->is_first_fragment)
		follow_fragments(packet);
}

/* Rules let the rest of a datagram pass whose first fragment was granted a management port; blocks do not. */
static __always_inline int is_rest_of_managed(const struct packet *packet, const struct config *settings)
{
	if (!packet->is_fragment || !packet->shows_ports)
		return 0;
	return is_management_port(packet->destination_port, settings) ||
	       (packet->flow.direction == DIRECTION_EGRESS &&
		is_management_port(packet->source_port, settings));
}

/* The verdict on an arriving packet. */
static __always_inline enum counter judge(struct packet *packet, const struct config *settings)
{
	__u32 mode = settings->mode, rules, anomalies;
	enum rule_verdict by_rules = RULES_NONE;
	enum counter verdict;

	if (mode == MODE_OFF)
		return COUNTER_OFF;
	if (is_localhost(&packet->flow.source))
		return COUNTER_GUARDED_ADDRESS;
	rules = count_rules(DIRECTION_INGRESS);
	anomalies = packet->anomalies & settings->drop_anomalies;
	if (rules != 0)
		prepare_for_rules(packet);
	if ((rules != 0 || anomalies != 0) && is_exempt(packet))
		return packet->exemption;
	if (anomalies)
		return judge_by_policy(COUNTER_DROPPED_ANOMALY, anomalies, mode);

	if (rules != 0 && !is_rest_of_managed(packet, settings))
		by_rules = judge_by_rules(DIRECTION_INGRESS);
	if (by_rules == RULES_ALLOWED)
		return COUNTER_ALLOWED;
	if (by_rules == RULES_DROPPED)
		return COUNTER_DROPPED_RULE;
	if (by_rules == RULES_OVER_RATE)
		return COUNTER_DROPPED_RATE;

	verdict = match_blocks(mode);
	if (verdict != COUNTER_PASSED && verdict != COUNTER_AUDITED)
		return verdict;
	if (is_budgeted_syn(packet, settings)) {
		if (is_exempt(packet))
			return packet->exemption;
		if (is_syn_over(packet, settings))
			return judge_by_policy(COUNTER_DROPPED_SYN, 0,
					       settings->syn_mode == BLOCK_AUDIT ? MODE_AUDIT : mode);
	}
	return by_rules == RULES_AUDITED ? COUNTER_AUDITED : verdict;
}

/*
 * The verdict on a leaving packet. Answers from a management port pass, and what goes to one elsewhere (the
 * bus). A SYN comes from no port that answers: who binds a management port to call out gets nothing for it.
 */
static __always_inline enum counter judge_leaving(struct packet *packet, const struct config *settings)
{
	const struct flow_key *flow = &packet->flow;

	if (settings->mode == MODE_OFF || count_rules(DIRECTION_EGRESS) == 0)
		return COUNTER_EGRESS_PASSED;
	prepare_for_rules(packet);
	if (is_guarded_address(&flow->destination))
		return COUNTER_EGRESS_EXEMPT;
	if (packet->has_ports && (is_management_port(flow->destination_port, settings) ||
				  (is_management_port(flow->source_port, settings) &&
				   !(flow->protocol == IPPROTO_TCP && is_pure_syn(packet->tcp_flags)))))
		return COUNTER_EGRESS_EXEMPT;
	if (is_rest_of_managed(packet, settings))
		return COUNTER_EGRESS_EXEMPT;
	switch (judge_by_rules(DIRECTION_EGRESS)) {
	case RULES_ALLOWED:
		return COUNTER_EGRESS_ALLOWED;
	case RULES_DROPPED:
		return COUNTER_EGRESS_DROPPED_RULE;
	case RULES_OVER_RATE:
		return COUNTER_EGRESS_DROPPED_RATE;
	case RULES_AUDITED:
		return COUNTER_EGRESS_AUDITED;
	default:
		return COUNTER_EGRESS_PASSED;
	}
}

#endif
