/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map of the sensor. Sizes are defaults: user space may set max_entries before loading. */
#ifndef TOLLWARD_MAPS_H
#define TOLLWARD_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "flow-layout.h"

/* A look-up of IPv4 costs a hash lookup for each prefix length in use around the address. One of IPv6 is that
 * of a trie, which slows with its size (170 ns at 100,000 entries): wide lists belong above, split by
 * address.
 */
#define BLOCKED_CIDRS_MAX 65536
/* Addresses of one node's interfaces. */
#define GUARDED_ADDRESSES_MAX 1024
/* About 200 bytes an entry, preallocated, two generations: 25 MiB. Drained every 100 to 200 ms by user space.
 */
#define FLOWS_MAX 65536
/* One record for each block that begins to drop: 1,600 between two reads. */
#define FIRST_HITS_BYTES (64 * 1024)
/* A rule with 1,000 ranges is 1,000 prefixes; up to 256 bytes each, made when used: 16 MiB when full. Half of
 * them are of the set in force, half of that which is being written. */
#define RULE_MATCH_MAX 65536
/* One for each source and rule with a rate, and for each source of SYNs; the least recently used are
 * forgotten, which lets a source begin anew. */
#define BUCKETS_MAX 65536
/* Datagrams under reassembly. Linux keeps them for 30 seconds (IPv6: 60) and 4 MiB. */
#define FRAGMENTS_MAX 16384
#define PORTS	      65536
/* 4,000 records between two reads. */
#define GUARD_EVENTS_BYTES (256 * 1024)
/* Rules, blocks and reasons share these by hash: each has a rate of its own, unless two meet. */
#define EVENT_RATES 256
/* 10,000 single-packet records between two reads. */
#define SPILLED_FLOWS_BYTES (1024 * 1024)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GUARDED_ADDRESSES_MAX);
	__type(key, struct address);
	__type(value, __u32);
} guarded SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct guarded_filter);
} guarded_filter SEC(".maps");

/* Made when used, as a trie's are: about 100 bytes an entry, and 16 a bucket. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, BLOCKED_CIDRS_MAX);
	__type(key, struct cidr4_key);
	__type(value, struct block);
} block_cidr4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 16);
	__type(key, __u32);
	__type(value, __u64);
} block_lengths4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, BLOCKED_CIDRS_MAX);
	__type(key, struct cidr6_key);
	__type(value, struct block);
} block_cidr6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rule_set);
} rule_set SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RULE_MATCH_MAX);
	__type(key, struct rule_match_key);
	__type(value, struct rule_bits);
} rule_match SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RULE_GENERATIONS * 2 * RULES_MAX);
	__type(key, __u32);
	__type(value, struct rule);
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RULE_IDS);
	__type(key, __u32);
	__type(value, struct rule_count);
} rule_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, BUCKETS_MAX);
	__type(key, struct bucket_key);
	__type(value, __u64);
} buckets SEC(".maps");

/* As in buckets, by port; an array, so that forged sources push none of them out. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, __u64);
} syn_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTS_MAX);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, GUARD_EVENTS_BYTES);
} guard_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EVENT_RATES);
	__type(key, __u32);
	__type(value, __u64);
} event_rates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTER_SLOTS);
	__type(key, __u32); /* enum counter */
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, FIRST_HITS_BYTES);
} first_hits SEC(".maps");

struct flows {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOWS_MAX);
	__type(key, struct flow_key);
	__type(value, struct flow);
};

struct flows flows_a SEC(".maps");
struct flows flows_b SEC(".maps");

/*
 * The generation that is written now. Replacing the element makes the kernel wait until no program can still
 * hold the old map, so user space drains whole flows that nobody adds to.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct flows);
} active_flows SEC(".maps") = {
	.values = {&flows_a},
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, SPILLED_FLOWS_BYTES);
} spilled_flows SEC(".maps");

/* A function of its own: the object's BTF then names the counters, for the test that compares them. */
static __noinline void count(enum counter counter)
{
	__u32 key = counter;
	__u64 *value = bpf_map_lookup_elem(&counters, &key);

	if (value)
		*value += 1; /* per CPU, and no program interrupts another of its CPU here */
}

#endif
