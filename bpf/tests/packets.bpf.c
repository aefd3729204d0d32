// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What tests and benchmarks need in the kernel; no sensor loads it.
 *
 * send_on gives each of the live frames of a TEST_RUN the next sender of a list and sends it out of a device.
 *
 * drop_all is XDP_DROP and nothing else: what every verdict is measured against.
 *
 * look_up looks for blocked addresses in the sensor's table; pick_only does the same without looking,
 * read_only reads one word where that looks.
 *
 * fill_ring writes records to a ring as fast as one CPU can, and counts those that found no room.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "../include/blocks.h"

#define SENDERS_MAX	 1048576
#define RING_BYTES	 (16 * 1024 * 1024)
#define RECORD_BYTES	 96
#define RECORDS_EACH_RUN 64

/* One sender; the header's checksum belongs to the address. */
struct sender {
	__be32 address;
	__be16 checksum;
	__be16 port;
};

/* What to send where. Written by user space before a run; next goes round. */
struct order {
	__u32 ifindex;
	__u32 senders;
	__u32 next;
	__u32 gap_ns; /* between two frames; 0: none */
	__u64 due_ns; /* when the next may go */
	__u64 sent;
	__u64 not_before_ns; /* what is late may not go in one burst: no queue would hold it */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct order);
} orders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SENDERS_MAX);
	__type(key, __u32);
	__type(value, struct sender);
} senders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} records SEC(".maps");

/* Written, and without room. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} ring_counts SEC(".maps");

SEC("xdp")
int send_on(struct xdp_md *context)
{
	void *data = (void *)(long)context->data;
	void *end = (void *)(long)context->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	__be16 *port = (void *)(ip + 1);
	struct sender *sender;
	struct order *order;
	__u32 key = 0;

	order = bpf_map_lookup_elem(&orders, &key);
	if (!order || (void *)(port + 1) > end)
		return XDP_ABORTED;
	if (order->gap_ns) {
		__u64 now = bpf_ktime_get_ns();

		/* Too early: the frame comes again. Steady, where user space could only send in bursts. */
		if (now < order->due_ns || now < order->not_before_ns)
			return XDP_DROP;
		order->not_before_ns = now + order->gap_ns / 2;
		order->due_ns = (order->due_ns ? order->due_ns : now) + order->gap_ns;
	}
	order->sent += 1;
	key = order->next;
	if (key >= order->senders)
		key = 0;
	order->next = key + 1;
	sender = bpf_map_lookup_elem(&senders, &key);
	if (!sender)
		return XDP_ABORTED;
	ip->saddr = sender->address;
	ip->check = sender->checksum;
	*port = sender->port;
	return bpf_redirect(order->ifindex, 0);
}

static __always_inline void pick(__u64 *key, __u32 count)
{
	key[0] = 0;
	key[1] = bpf_cpu_to_be64(0x0000ffff0a000000ULL + bpf_get_prandom_u32() % count);
}

/* A function of its own, to be verified once. */
__noinline int is_blocked(const struct address *address)
{
	struct block_terms terms;
	__u32 home;

	return address && find_home(address, &home) && find_exact(address, home, &terms) != 0;
}

/* Looks for addresses at random, of as many as orders[0].senders says; what pick_only does costs as much
 * less.
 */
SEC("xdp")
int look_up(struct xdp_md *context)
{
	struct order *order;
	__u32 zero = 0;
	__u64 key[2];
	int found = 0;

	order = bpf_map_lookup_elem(&orders, &zero);
	if (!order || order->senders == 0)
		return 0;
	for (int i = 0; i < RECORDS_EACH_RUN; i++) {
		pick(key, order->senders);
		found += is_blocked((struct address *)key);
	}
	return found;
}

SEC("xdp")
int pick_only(struct xdp_md *context)
{
	struct order *order;
	__u32 zero = 0;
	__u64 key[2];
	int odd = 0;

	order = bpf_map_lookup_elem(&orders, &zero);
	if (!order || order->senders == 0)
		return 0;
	for (int i = 0; i < RECORDS_EACH_RUN; i++) {
		pick(key, order->senders);
		odd += key[1] >> 56 & 1;
	}
	return odd;
}

/* Reads one word of the table's memory at random, each where the one before says: what no look-up can be
 * faster than.
 */
SEC("xdp")
int read_only(struct xdp_md *context)
{
	struct order *order;
	__u32 zero = 0, before = 0;
	int odd = 0;

	order = bpf_map_lookup_elem(&orders, &zero);
	if (!order || order->senders == 0)
		return 0;
	for (int i = 0; i < RECORDS_EACH_RUN; i++) {
		__u32 index = (bpf_get_prandom_u32() + (before & 1)) % order->senders;
		struct block_bucket *bucket = bpf_map_lookup_elem(&block_exact, &index);

		if (!bucket)
			return 0;
		before = bucket->first.head;
		odd += before & 1;
	}
	return odd;
}

SEC("xdp")
int drop_all(struct xdp_md *context)
{
	return XDP_DROP;
}

SEC("xdp")
int fill_ring(struct xdp_md *context)
{
	__u64 record[RECORD_BYTES / 8] = {};
	__u64 *counts[2];

	for (__u32 i = 0; i < 2; i++) {
		__u32 key = i;

		counts[i] = bpf_map_lookup_elem(&ring_counts, &key);
		if (!counts[i])
			return XDP_ABORTED;
	}
	for (int i = 0; i < RECORDS_EACH_RUN; i++) {
		record[0] = *counts[0];
		if (bpf_ringbuf_output(&records, record, sizeof(record), BPF_RB_NO_WAKEUP))
			*counts[1] += 1;
		else
			*counts[0] += 1;
	}
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
