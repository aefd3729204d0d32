/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Rules of operators: which of them match a packet, in their order, and what they say. layout.h has how they
 * are laid out. A rule whose action is allow or drop ends the look-up; an alert, a rate that is not used up,
 * a rule in audit mode and one that has lapsed let it go on.
 */
#ifndef TOLLWARD_RULES_H
#define TOLLWARD_RULES_H

#include "rates.h"

/* Rules that match one packet and let the look-up go on. With more, the packet passes, counted. */
#define RULE_CHAIN_MAX 32
#define RULE_HEAD_BITS 32
/* How long Linux waits for the rest of a datagram (IPV6_FRAG_TIMEOUT; of IPv4 half as long). */
#define FRAGMENT_NS (60ULL * 1000 * 1000 * 1000)

enum rule_verdict {
	RULES_NONE = 0,
	RULES_AUDITED = 1,
	RULES_ALLOWED = 2,
	RULES_DROPPED = 3,
	RULES_OVER_RATE = 4,
	RULES_ON_TRIAL = 5, /* of one rule: would have dropped, but is in audit mode */
};

/* Number of the lowest bit that is set; bits is not 0. Without branches, of which the verifier would follow
 * each. */
static __always_inline __u32 lowest_bit(__u64 bits)
{
	bits = (bits - 1) & ~bits;
	bits -= (bits >> 1) & 0x5555555555555555ULL;
	bits = (bits & 0x3333333333333333ULL) + ((bits >> 2) & 0x3333333333333333ULL);
	bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (bits * 0x0101010101010101ULL) >> 56;
}

static __always_inline void fill_fragment_key(struct fragment_key *key, const struct packet *packet)
{
	key->source = packet->flow.source;
	key->destination = packet->flow.destination;
	key->id = packet->fragment_id;
	key->protocol = packet->ethernet_protocol == ETH_P_IP ? packet->flow.protocol : 0;
	key->direction = packet->flow.direction;
	key->zero = 0;
}

/* Ports of a later fragment are those of the first; a first one says them for the others. */
static __always_inline void follow_fragments(struct packet *packet)
{
	struct fragment_key key;
	struct fragment *known;

	fill_fragment_key(&key, packet);
	if (packet->is_first_fragment) {
		struct fragment first = {
			.expires_ns = packet->now + FRAGMENT_NS,
			.source_port = packet->source_port,
			.destination_port = packet->destination_port,
			.protocol = packet->protocol,
			.has_ports = packet->has_ports,
		};

		/* Without ports, and of a transport that has them: so are the others. */
		if (!packet->is_transport_unknown)
			bpf_map_update_elem(&fragments, &key, &first, BPF_ANY);
		return;
	}
	known = bpf_map_lookup_elem(&fragments, &key);
	if (!known || known->expires_ns <= packet->now) {
		count(COUNTER_FRAGMENT_WITHOUT_FIRST);
		return;
	}
	packet->source_port = known->source_port;
	packet->destination_port = known->destination_port;
	packet->protocol = known->protocol;
	packet->shows_ports = known->has_ports;
	packet->is_transport_unknown = 0;
}

/*
 * What rules are to think of the transport: it is known if the packet shows its ports, or has a protocol
 * without any.
 */
static __always_inline void know_transport(struct packet *packet)
{
	__u8 protocol = packet->flow.protocol;
	int has_port_numbers = protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;

	packet->protocol = packet->is_unreadable ? PROTOCOL_UNKNOWN : protocol;
	packet->source_port = packet->has_ports ? packet->flow.source_port : 0;
	packet->destination_port = packet->has_ports ? packet->flow.destination_port : 0;
	packet->shows_ports = packet->has_ports;
	packet->is_transport_unknown = packet->is_unreadable || (has_port_numbers && !packet->has_ports);
}

static __always_inline struct rule_bits *find_rules(struct rule_match_key *key, __u8 dimension,
						    __u32 value_bits)
{
	key->dimension = dimension;
	key->prefix_length = RULE_HEAD_BITS + value_bits;
	return bpf_map_lookup_elem(&rule_match, key);
}

static __always_inline struct rule_bits *find_transport(struct rule_match_key *key,
							const struct packet *packet, __u32 policy)
{
	__u8 dimension = RULE_TRANSPORT;

	key->value[0] = packet->protocol;
	key->value[1] = packet->destination_port >> 8;
	key->value[2] = packet->destination_port;
	if (packet->is_transport_unknown && policy == UNKNOWN_JUDGED)
		dimension = RULE_UNKNOWN_TRANSPORT;
	return find_rules(key, dimension, packet->shows_ports ? 24 : 8);
}

/*
 * What one rule that matches says; RULES_NONE: nothing that ends the look-up. A function of its own, so that
 * the verifier goes through it once, and not for each place in the chain.
 */
__noinline int obey(__u32 direction, __u32 index)
{
	__u32 zero = 0;
	struct packet *packet = bpf_map_lookup_elem(&packets, &direction);
	struct config *settings = bpf_map_lookup_elem(&config, &zero);
	struct rule *rule = bpf_map_lookup_elem(&rules, &index);
	struct rule_count *counts;
	int is_rate_limit;
	__u32 id;

	if (!packet || !settings || !rule)
		return RULES_NONE;
	if (rule->expires_ns != 0 && rule->expires_ns <= packet->now) {
		count(COUNTER_EXPIRED_SEEN);
		return RULES_NONE;
	}
	id = rule->id;
	counts = bpf_map_lookup_elem(&rule_counts, &id);
	if (!counts)
		return RULES_NONE;
	counts->matched += packet->packets;
	counts->last_ns = packet->now;
	if (rule->action == RULE_ALLOW)
		return RULES_ALLOWED;
	if (rule->action == RULE_ALERT) {
		count(COUNTER_RULE_ALERTED);
		report(direction, EVENT_RULE, COUNTER_RULE_ALERTED, id, 0);
		return RULES_NONE;
	}
	is_rate_limit = rule->action == RULE_RATE_LIMIT;
	if (is_rate_limit &&
	    !is_peer_over(direction, BUCKET_RULE, id, rule->rate.interval_ns, rule->rate.tolerance_ns))
		return RULES_NONE;
	counts->over += packet->packets;
	if (packet->is_transport_unknown)
		count(COUNTER_UNKNOWN_TRANSPORT);
	if (settings->mode != MODE_ENFORCE || rule->mode == RULE_AUDIT) {
		report(direction, EVENT_RULE, COUNTER_AUDITED, id, 0);
		/* What would have ended the look-up ends it; a rule on trial does not. */
		return rule->mode == RULE_AUDIT ? RULES_ON_TRIAL : RULES_AUDITED;
	}
	report(direction, EVENT_RULE, is_rate_limit ? COUNTER_DROPPED_RATE : COUNTER_DROPPED_RULE, id, 0);
	return is_rate_limit ? RULES_OVER_RATE : RULES_DROPPED;
}

/* What the rules say of the packet of this direction; know_transport was called for it. */
__noinline int judge_by_rules(__u32 direction)
{
	__u32 zero = 0;
	struct packet *packet = bpf_map_lookup_elem(&packets, &direction);
	struct config *settings = bpf_map_lookup_elem(&config, &zero);
	struct rule_set *set = bpf_map_lookup_elem(&rule_set, &zero);
	struct rule_bits *transport, *source, *destination;
	struct rule_match_key key = {.direction = direction};
	__u32 first;

	if (!packet || !settings || !set)
		return RULES_NONE;
	key.generation = set->generation & (RULE_GENERATIONS - 1);
	first = (key.generation * 2 + direction) * RULES_MAX;
	transport = find_transport(&key, packet, settings->unknown_transport);
	if (!transport)
		return RULES_NONE;
	key.family = packet->ethernet_protocol == ETH_P_IP ? 4 : 6;
	__builtin_memcpy(key.value, packet->flow.source.bytes, sizeof(key.value));
	source = find_rules(&key, RULE_SOURCE, 128);
	if (!source)
		return RULES_NONE;
	if ((transport->summary & source->summary) == 0)
		return RULES_NONE;
	__builtin_memcpy(key.value, packet->flow.destination.bytes, sizeof(key.value));
	destination = find_rules(&key, RULE_DESTINATION, 128);
	if (!destination)
		return RULES_NONE;
	packet->rule_words = transport->summary & source->summary & destination->summary;
	for (int i = 0; i < RULE_CHAIN_MAX + RULE_BITS_WORDS; i++) {
		__u64 bits = packet->rule_bits;
		__u32 word;
		int answer;

		if (bits == 0) {
			__u64 words = packet->rule_words;

			if (words == 0)
				return packet->rule_verdict;
			packet->rule_words = words & (words - 1);
			word = lowest_bit(words) & (RULE_BITS_WORDS - 1);
			packet->rule_word = word;
			packet->rule_bits =
				transport->words[word] & source->words[word] & destination->words[word];
			continue;
		}
		packet->rule_bits = bits & (bits - 1);
		answer = obey(direction, first + packet->rule_word * 64 + lowest_bit(bits));
		if (answer == RULES_ON_TRIAL)
			packet->rule_verdict = RULES_AUDITED;
		else if (answer != RULES_NONE)
			return answer;
	}
	count(COUNTER_RULE_CHAIN_TOO_LONG);
	return packet->rule_verdict;
}

#endif
