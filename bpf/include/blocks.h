/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Finds the block of an exact address, while user space changes the table; see struct block_slot. */
#ifndef TOLLWARD_BLOCKS_H
#define TOLLWARD_BLOCKS_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "layout.h"

/* Two buckets of 64 bytes an entry: 16 MiB. */
#define BLOCK_BUCKETS 262144
/* Of addresses that found no room in the table, where a few of a million belong. Made when used. */
#define BLOCK_OVERFLOW_MAX 4096
/* User space changes a slot at most twice in a row, and then has other work for longer than this takes. */
#define SLOT_READS_MAX 4

/* See struct block_slot. What can be mapped begins on a page, so each bucket is a cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, BLOCK_BUCKETS + SLOT_REACH_MAX);
	__type(key, __u32);
	__type(value, struct block_bucket);
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

/* Of a block in a map of the kernel's, which replaces it whole. Returns where its hits are counted. */
static __always_inline __u64 *read_block(struct block *block, struct block_terms *terms)
{
	terms->expires_ns = block->expires_ns;
	terms->rule_id = block->rule_id;
	terms->packets_per_second = block->packets_per_second;
	terms->mode = block->mode;
	return &block->hits;
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

static __always_inline int is_wide(const struct address *address)
{
	const __u64 *half = (const __u64 *)address->bytes;

	return half[0] != 0 || (__u32)half[1] != bpf_htonl(0x0000ffff);
}

/* A slot's address of IPv4 and its head, in one word. */
static __always_inline __u64 read_beginning(const volatile struct block_slot *slot)
{
	return *(const volatile __u64 *)slot;
}

/* What differs between the address of a slot that begins so and another; 0: it is that, and is there. */
static __always_inline __u64 difference(const volatile struct block_slot *slot, __u64 beginning,
					const struct address *address, int wide)
{
	const volatile __u64 *half = (const volatile void *)slot + WIDE_ADDRESS;
	const __u64 *wanted = (const __u64 *)address->bytes;
	const __u64 wide_there = (__u64)(SLOT_LIVE | SLOT_WIDE) << 32;

	if (wide)
		return ((beginning ^ wide_there) & wide_there) | (half[0] ^ wanted[0]) |
		       (half[1] ^ wanted[1]);
	return (beginning ^ (wanted[1] >> 32 | (__u64)SLOT_LIVE << 32)) & (wide_there | 0xffffffff);
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
				     int wide, struct block_terms *terms)
{
	__u64 beginning = read_beginning(slot);

	for (int i = 0; i < SLOT_READS_MAX; i++) {
		const volatile struct block_slot *now = after((const void *)slot, beginning);
		__u64 different = difference(now, beginning, address, wide);
		__u64 before = beginning;
		__u64 word;

		if (different)
			return 0;
		word = now->terms;
		terms->rule_id = now->rule_id;
		terms->mode = word & 0xff;
		terms->packets_per_second = word >> SLOT_RATE_SHIFT & 0xffff;
		terms->expires_ns = word >> SLOT_TIME_SHIFT << SLOT_EXPIRY_SHIFT;
		now = after((const void *)slot, different + word + terms->rule_id);
		beginning = read_beginning(now);
		if (beginning == before)
			return 1;
	}
	return 1;
}

/* Which slot of a bucket may hold the address. */
static __always_inline struct block_slot *slot_in(struct block_bucket *bucket, __u64 beginning,
						  const struct address *address, int wide)
{
	if (wide)
		return &bucket->first;
	return &bucket->first + is_other(difference(&bucket->first, beginning, address, 0));
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

/* The terms of an address's block in the table, and where its hits are counted; 0: there is none. */
static __always_inline __u64 *find_slot(const struct address *address, int wide, __u32 home,
					struct block_terms *terms, __u32 *head)
{
	__u32 reach = 1;

	for (__u32 i = 0; i < SLOT_REACH_MAX && i < reach; i++) {
		__u32 index = home + i;
		struct block_bucket *bucket = bpf_map_lookup_elem(&block_exact, &index);
		struct block_slot *slot;
		__u64 beginning;

		if (!bucket)
			return 0;
		beginning = read_beginning(&bucket->first);
		if (i == 0) {
			*head = beginning >> 32;
			reach = *head >> SLOT_REACH_SHIFT & SLOT_REACH_MASK;
		}
		slot = slot_in(bucket, beginning, address, wide);
		if (read_slot(slot, address, wide, terms))
			return &slot->hits;
	}
	return 0;
}

/* As find_slot, and of what found no room there. */
static __always_inline __u64 *find_exact(const struct address *address, __u32 home, struct block_terms *terms)
{
	struct block *block;
	__u32 head = 0;
	__u64 *hits;

	hits = is_wide(address) ? find_slot(address, 1, home, terms, &head)
				: find_slot(address, 0, home, terms, &head);
	if (hits || !(head & SLOT_OVERFLOW))
		return hits;
	block = bpf_map_lookup_elem(&block_overflow, address);
	return block ? read_block(block, terms) : 0;
}

#endif
