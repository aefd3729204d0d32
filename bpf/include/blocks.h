/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Finds the block of an exact address, while user space changes the table; see struct block_slot. */
#ifndef TOLLWARD_BLOCKS_H
#define TOLLWARD_BLOCKS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "layout.h"

/* Two slots of 64 bytes an entry: 16 MiB. An exact address costs a cache line or two however many there are.
 */
#define BLOCKED_ADDRESSES_MAX 131072
/* Of addresses that found no room in the table, where a few of a million belong. Made when used. */
#define BLOCK_OVERFLOW_MAX 4096
/* User space changes a slot at most twice in a row, and then has other work for longer than this takes. */
#define SLOT_READS_MAX 4

/* See struct block_slot. What can be mapped begins on a page, so each slot is a cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2 * BLOCKED_ADDRESSES_MAX + SLOT_REACH_MAX);
	__type(key, __u32);
	__type(value, struct block_slot);
} block_exact SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct block_hash);
} block_hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, BLOCK_OVERFLOW_MAX);
	__type(key, struct address);
	__type(value, struct block);
} block_overflow SEC(".maps");

/* What a verdict depends on, read once: two words of the block. */
struct block_terms {
	__u64 expires_ns;
	union {
		__u64 word;
		struct {
			__u32 rule_id;
			__u8 mode;
			__u8 prefix_length;
			__u16 packets_per_second;
		};
	};
};

/* Where to read from, once value was read: processors that read ahead wait for an address. */
static __always_inline const void *after(const void *pointer, __u64 value)
{
	asm volatile("%1 &= 0\n\t%0 += %1" : "+r"(pointer), "+r"(value));
	return pointer;
}

static __always_inline void read_terms(struct block_terms *terms, const struct block *block)
{
	terms->expires_ns = *(const volatile __u64 *)&block->expires_ns;
	terms->word = *(const volatile __u64 *)&block->rule_id;
}

static __always_inline __u32 home_of(const struct address *address, const struct block_hash *hash)
{
	const __u64 *half = (const __u64 *)address->bytes;
	__u64 sum = hash->addend;
	__u32 mixed;

	sum += hash->factors[0] * (__u32)half[0] + hash->factors[1] * (half[0] >> 32);
	sum += hash->factors[2] * (__u32)half[1] + hash->factors[3] * (half[1] >> 32);
	mixed = sum >> 32;
	mixed = (mixed ^ mixed >> 15) * BLOCK_HASH_MIX;
	return (__u64)mixed * hash->homes >> 32;
}

/*
 * Whether the slot holds the address, and on which terms. head was read before. What changes meanwhile is
 * read again. A slot that changed each time, SLOT_READS_MAX within a few cache misses, held the address all
 * the same: it is judged by what was read last, as to let it pass would be the greater fault.
 */
static __always_inline int read_slot(const struct block_slot *slot, __u32 head, const struct address *address,
				     struct block_terms *terms)
{
	const __u64 *wanted = (const __u64 *)address->bytes;

	for (int i = 0; i < SLOT_READS_MAX; i++) {
		const volatile struct block_slot *now = after(slot, head);
		const volatile __u64 *half = (const volatile __u64 *)now->address.bytes;
		__u64 difference;
		__u32 before = head;

		if (!(head & SLOT_LIVE))
			return 0;
		difference = (half[0] ^ wanted[0]) | (half[1] ^ wanted[1]);
		if (difference)
			return 0;
		read_terms(terms, (const struct block *)&now->block);
		now = after(slot, difference + terms->expires_ns + terms->word);
		head = now->head;
		if (head == before)
			return 1;
	}
	return 1;
}

/* The block of an address, and its terms. */
static __always_inline struct block *find_exact(const struct address *address, struct block_terms *terms)
{
	__u32 zero = 0, home, head = 0, reach = 1;
	const struct block_hash *hash = bpf_map_lookup_elem(&block_hash, &zero);
	struct block *block;

	if (!hash || hash->homes == 0)
		return 0;
	home = home_of(address, hash);
	for (__u32 i = 0; i < SLOT_REACH_MAX && i < reach; i++) {
		__u32 index = home + i;
		struct block_slot *slot = bpf_map_lookup_elem(&block_exact, &index);
		__u32 now;

		if (!slot)
			return 0;
		now = *(const volatile __u32 *)&slot->head;
		if (i == 0) {
			head = now;
			reach = head >> SLOT_REACH_SHIFT & SLOT_REACH_MASK;
		}
		if (read_slot(slot, now, address, terms))
			return &slot->block;
	}
	if (!(head & SLOT_OVERFLOW))
		return 0;
	block = bpf_map_lookup_elem(&block_overflow, address);
	if (block)
		read_terms(terms, block);
	return block;
}

#endif
