/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Finds the block of an exact address, while user space changes the table; see struct block_slot. */
#ifndef TOLLWARD_BLOCKS_H
#define TOLLWARD_BLOCKS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "layout.h"

/* A bucket of 64 bytes an entry, and as much for its hits: 16 MiB. */
#define BLOCKED_ADDRESSES_MAX 131072
/* Of addresses that found no room in the table, where a few of a million belong. Made when used. */
#define BLOCK_OVERFLOW_MAX 4096
/* User space changes a slot at most twice in a row, and then has other work for longer than this takes. */
#define SLOT_READS_MAX 4

/* See struct block_slot. What can be mapped begins on a page, so each bucket is a cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, BLOCKED_ADDRESSES_MAX + SLOT_REACH_MAX);
	__type(key, __u32);
	__type(value, struct block_bucket);
} block_exact SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, BLOCKED_ADDRESSES_MAX + SLOT_REACH_MAX);
	__type(key, __u32);
	__type(value, struct bucket_hits);
} block_hits SEC(".maps");

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

/* What a verdict depends on. */
struct block_terms {
	__u64 expires_ns;
	__u32 rule_id;
	__u32 packets_per_second;
	__u32 mode;
};

/* Where to read from, once value was read: processors that read ahead wait for an address. */
static __always_inline const void *after(const void *pointer, __u64 value)
{
	asm volatile("%1 &= 0\n\t%0 += %1" : "+r"(pointer), "+r"(value));
	return pointer;
}

/* Of a block in a map of the kernel's, which replaces it whole. */
static __always_inline struct block_hits *read_block(struct block *block, struct block_terms *terms)
{
	terms->expires_ns = block->expires_ns;
	terms->rule_id = block->rule_id;
	terms->packets_per_second = block->packets_per_second;
	terms->mode = block->mode;
	return (struct block_hits *)&block->hits;
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

/* What differs between the address of a slot and another; 0: it is that, and is there. */
static __always_inline __u64 difference(const volatile struct block_slot *slot, __u32 head,
					const struct address *address)
{
	const volatile __u64 *half = (const volatile __u64 *)slot->address.bytes;
	const __u64 *wanted = (const __u64 *)address->bytes;

	return (half[0] ^ wanted[0]) | (half[1] ^ wanted[1]) | (~head & SLOT_LIVE);
}

/* 1, or 0 for 0, without a branch: which of two slots holds an address, no processor could guess. */
static __always_inline __u64 is_other(__u64 value)
{
	__u64 other;

	asm volatile("%0 = %1\n\t%0 = -%0\n\t%0 |= %1\n\t%0 >>= 63" : "=&r"(other) : "r"(value));
	return other;
}

/*
 * Whether the slot holds the address, and on which terms. What changes meanwhile is read again. A slot that
 * changed each time, SLOT_READS_MAX within a few cache misses, held the address all the same: it is judged by
 * what was read last, as to let it pass would be the greater fault.
 */
static __always_inline int read_slot(const volatile struct block_slot *slot, const struct address *address,
				     struct block_terms *terms)
{
	__u32 head = slot->head;

	for (int i = 0; i < SLOT_READS_MAX; i++) {
		const volatile struct block_slot *now = after((const void *)slot, head);
		__u64 different = difference(now, head, address);
		__u32 before = head;
		__u64 word;

		if (different)
			return 0;
		word = now->terms;
		terms->rule_id = now->rule_id;
		terms->mode = word & 0xff;
		terms->packets_per_second = word >> SLOT_RATE_SHIFT & 0xffff;
		terms->expires_ns = word >> SLOT_TIME_SHIFT << SLOT_EXPIRY_SHIFT;
		now = after((const void *)slot, different + word + terms->rule_id);
		head = now->head;
		if (head == before)
			return 1;
	}
	return 1;
}

/* Where to look for an address first. 0: there is no table yet. */
static __always_inline int find_home(const struct address *address, __u32 *home)
{
	__u32 zero = 0;
	const struct block_hash *hash = bpf_map_lookup_elem(&block_hash, &zero);

	if (!hash || hash->homes == 0)
		return 0;
	*home = home_of(address, hash);
	return 1;
}

/*
 * Begins to read where the hits of a home are counted, for whoever will count: it comes from memory while the
 * look-up waits for the bucket, and not after it.
 */
static __always_inline void read_hits_ahead(__u32 home)
{
	const struct bucket_hits *hits = bpf_map_lookup_elem(&block_hits, &home);
	__u64 value;

	if (!hits)
		return;
	value = *(const volatile __u64 *)&hits->slots[0].hits;
	asm volatile("" : : "r"(value));
}

/* The terms of an address's block, and where its hits are counted; 0: there is none. */
static __always_inline struct block_hits *find_exact(const struct address *address, __u32 home,
						     struct block_terms *terms)
{
	__u32 reach = 1, head = 0;
	struct block *block;

	for (__u32 i = 0; i < SLOT_REACH_MAX && i < reach; i++) {
		__u32 index = home + i;
		struct block_bucket *bucket = bpf_map_lookup_elem(&block_exact, &index);
		const volatile struct block_slot *first;
		struct bucket_hits *hits;
		__u64 other;
		__u32 now;

		if (!bucket)
			return 0;
		first = &bucket->slots[0];
		now = first->head;
		if (i == 0) {
			head = now;
			reach = head >> SLOT_REACH_SHIFT & SLOT_REACH_MASK;
		}
		other = is_other(difference(after((const void *)first, now), now, address));
		if (!read_slot((const void *)bucket + other * sizeof(struct block_slot), address, terms))
			continue;
		hits = bpf_map_lookup_elem(&block_hits, &index);
		return hits ? (void *)hits + other * sizeof(struct block_hits) : 0;
	}
	if (!(head & SLOT_OVERFLOW))
		return 0;
	block = bpf_map_lookup_elem(&block_overflow, address);
	return block ? read_block(block, terms) : 0;
}

#endif
