/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The verdict on one arriving packet. What must never be cut off passes first; then an exact address, then
 * prefixes from the longest to the shortest. A live drop entry always wins: neither an expired entry nor one
 * in audit mode hides a wider one that drops.
 */
#ifndef TOLLWARD_GUARD_H
#define TOLLWARD_GUARD_H

#include "packet.h"

/* Prefixes that contain one address and are expired or only audit. Deeper nests are counted and pass. */
#define CIDR_CHAIN_MAX 16
#define EXACT_PREFIX   128

enum match {
	MATCH_NONE,
	MATCH_AUDIT,
	MATCH_DROP,
};

/* Built in, so that not even an empty map takes the node from itself. */
static __always_inline int is_localhost(const struct address *source)
{
	const __u64 *half = (const __u64 *)source->bytes;

	if (half[0] != 0)
		return 0;
	return half[1] == bpf_cpu_to_be64(1) || half[1] == bpf_cpu_to_be64(0x0000ffff7f000001ULL);
}

static __always_inline int is_guarded_address(const struct address *source)
{
	return is_localhost(source) || bpf_map_lookup_elem(&guarded, source) != 0;
}

static __always_inline int is_management_port(const struct packet *packet, const struct config *config)
{
	if (!packet->has_ports || packet->flow.destination_port == 0)
		return 0;
	for (int i = 0; i < MANAGEMENT_PORTS_MAX; i++)
		if (config->management_ports[i] == packet->flow.destination_port)
			return 1;
	return 0;
}

static __noinline void report_first_hit(const struct first_hit *record)
{
	if (bpf_ringbuf_output(&first_hits, (void *)record, sizeof(*record), BPF_RB_NO_WAKEUP))
		count(COUNTER_FIRST_HIT_LOST);
}

static __always_inline enum match match_block(struct block *block, const struct address *source,
					      __u32 prefix_length, __u32 mode, __u64 now)
{
	if (block->expires_ns != 0 && block->expires_ns <= now) {
		count(COUNTER_EXPIRED_SEEN);
		return MATCH_NONE;
	}
	__sync_fetch_and_add(&block->hits, 1);
	block->last_hit_ns = now;
	if (mode != MODE_ENFORCE || block->mode == BLOCK_AUDIT)
		return MATCH_AUDIT;
	if (block->first_hit_ns == 0 && __sync_val_compare_and_swap(&block->first_hit_ns, 0, now) == 0) {
		struct first_hit record = {
			.at_ns = now,
			.source = *source,
			.rule_id = block->rule_id,
			.prefix_length = prefix_length,
		};

		report_first_hit(&record);
	}
	return MATCH_DROP;
}

/* The trie gives the longest prefix; asking again with one bit less than it had gives the next wider one. */
static __always_inline enum match match_cidr4(const struct address *source, __u32 mode, __u64 now)
{
	struct cidr4_key key = {.prefix_length = 32};
	enum match found = MATCH_NONE;

	__builtin_memcpy(key.address, source->bytes + 12, 4);
	for (int i = 0; i < CIDR_CHAIN_MAX; i++) {
		struct block *block = bpf_map_lookup_elem(&block_cidr4, &key);
		enum match match;

		if (!block)
			return found;
		match = match_block(block, source, block->prefix_length, mode, now);
		if (match == MATCH_DROP)
			return MATCH_DROP;
		if (match == MATCH_AUDIT)
			found = MATCH_AUDIT;
		if (block->prefix_length == 0 || block->prefix_length > key.prefix_length)
			return found;
		key.prefix_length = block->prefix_length - 1;
	}
	count(COUNTER_CIDR_CHAIN_TOO_LONG);
	return found;
}

static __always_inline enum match match_cidr6(const struct address *source, __u32 mode, __u64 now)
{
	struct cidr6_key key = {.prefix_length = 128};
	enum match found = MATCH_NONE;

	__builtin_memcpy(key.address, source->bytes, 16);
	for (int i = 0; i < CIDR_CHAIN_MAX; i++) {
		struct block *block = bpf_map_lookup_elem(&block_cidr6, &key);
		enum match match;

		if (!block)
			return found;
		match = match_block(block, source, block->prefix_length, mode, now);
		if (match == MATCH_DROP)
			return MATCH_DROP;
		if (match == MATCH_AUDIT)
			found = MATCH_AUDIT;
		if (block->prefix_length == 0 || block->prefix_length > key.prefix_length)
			return found;
		key.prefix_length = block->prefix_length - 1;
	}
	count(COUNTER_CIDR_CHAIN_TOO_LONG);
	return found;
}

static __always_inline enum counter judge(const struct packet *packet, const struct config *config, __u64 now)
{
	const struct address *source = &packet->flow.source;
	enum match match = MATCH_NONE;
	enum match cidr;
	struct block *block;

	if (config->mode == MODE_OFF)
		return COUNTER_OFF;
	if (is_guarded_address(source))
		return COUNTER_GUARDED_ADDRESS;
	if (is_management_port(packet, config))
		return COUNTER_MANAGEMENT_PORT;

	block = bpf_map_lookup_elem(&block_exact, source);
	if (block)
		match = match_block(block, source, EXACT_PREFIX, config->mode, now);
	if (match == MATCH_DROP)
		return COUNTER_DROPPED_EXACT;

	if (packet->ethernet_protocol == ETH_P_IP)
		cidr = match_cidr4(source, config->mode, now);
	else
		cidr = match_cidr6(source, config->mode, now);
	if (cidr == MATCH_DROP)
		return COUNTER_DROPPED_CIDR;
	return match == MATCH_AUDIT || cidr == MATCH_AUDIT ? COUNTER_AUDITED : COUNTER_PASSED;
}

#endif
