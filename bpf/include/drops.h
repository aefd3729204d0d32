/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the kernel itself throws away, and why. watch_kernel_drops (tp_btf/kfree_skb with a reason,
 * Linux 5.17) counts every packet of this namespace by its reason, and as far as there is room by reason and
 * 5-tuple. A generic XDP program's drops are left out: they are the guard's own, and in the flows.
 */
#ifndef TOLLWARD_DROPS_H
#define TOLLWARD_DROPS_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "who.h"

/* 44 + 8 bytes and the table's own, two generations. A flood fills it; the totals go on. */
#define KERNEL_DROPS_MAX 4096
/* Linux 6.18 has some 120 reasons. Reasons of subsystems, which begin at 1 << 16, share the last slot. */
#define GUARDS_OWN_TICKS 1
#define DROP_TOTALS	 256
#define TRANSPORT_BYTES	 4

enum skb_drop_reason {
	SKB_NOT_DROPPED_YET = 0,
	SKB_CONSUMED = 1,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct net_device {
	possible_net_t nd_net;
};
struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	__be16 protocol;
	__u16 network_header;
	unsigned char *head;
};
#pragma clang attribute pop

struct kernel_drops {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KERNEL_DROPS_MAX);
	__type(key, struct kernel_drop);
	__type(value, __u64);
};

struct kernel_drops kernel_drops_a SEC(".maps");
struct kernel_drops kernel_drops_b SEC(".maps");

/* As active_flows. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct kernel_drops);
} active_kernel_drops SEC(".maps") = {
	.values = {&kernel_drops_a},
};

/* By reason, since the map was made. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_TOTALS);
	__type(key, __u32);
	__type(value, __u64);
} drop_totals SEC(".maps");

static __always_inline int is_of_this_namespace(const struct sk_buff *skb)
{
	__u32 zero = 0;
	struct config *settings = bpf_map_lookup_elem(&config, &zero);
	const struct net_device *device = BPF_CORE_READ(skb, dev);
	const struct sock *sk = BPF_CORE_READ(skb, sk);

	if (!settings)
		return 0;
	if (settings->netns_inum == 0)
		return 1;
	/* Either may be another's: a packet from a container keeps its sender's socket until it is routed,
	 * and one in a queue keeps other things where its device was. */
	return (sk && BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum) == settings->netns_inum) ||
	       (device && BPF_CORE_READ(device, nd_net.net, ns.inum) == settings->netns_inum);
}

static __always_inline void read_drop_ports(struct kernel_drop *drop, const void *at)
{
	__u8 head[TRANSPORT_BYTES];

	if (bpf_probe_read_kernel(head, sizeof(head), at))
		return;
	if (drop->protocol == IPPROTO_TCP || drop->protocol == IPPROTO_UDP) {
		drop->source_port = head[0] << 8 | head[1];
		drop->destination_port = head[2] << 8 | head[3];
	} else if (drop->protocol == IPPROTO_ICMP || drop->protocol == IPPROTO_ICMPV6) {
		drop->destination_port = head[0] << 8 | head[1];
	}
}

/* 0: it is none of IP, or its header is not there. */
static __always_inline int read_dropped(struct kernel_drop *drop, const struct sk_buff *skb)
{
	__be16 protocol = BPF_CORE_READ(skb, protocol);
	__u16 network = BPF_CORE_READ(skb, network_header);
	const void *head = BPF_CORE_READ(skb, head);
	const void *at = head + network;

	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_probe_read_kernel(&ip, sizeof(ip), at) || ip.version != 4)
			return 0;
		map_ipv4(&drop->source, ip.saddr);
		map_ipv4(&drop->destination, ip.daddr);
		drop->protocol = ip.protocol;
		if (!(ip.frag_off & bpf_htons(IPV4_OFFSET_MASK)))
			read_drop_ports(drop, at + ip.ihl * 4);
		return 1;
	}
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_probe_read_kernel(&ip, sizeof(ip), at) || ip.version != 6)
			return 0;
		__builtin_memcpy(&drop->source, &ip.saddr, 16);
		__builtin_memcpy(&drop->destination, &ip.daddr, 16);
		drop->protocol = ip.nexthdr;
		/* Behind extension headers the ports are left out: what is dropped there has its addresses.
		 */
		if (!is_extension(ip.nexthdr))
			read_drop_ports(drop, at + sizeof(ip));
		return 1;
	}
	return 0;
}

static __always_inline int has_addresses_of(const struct kernel_drop *drop, __u32 direction)
{
	const struct packet *packet = bpf_map_lookup_elem(&packets, &direction);
	const __u64 *seen, *dropped = (const void *)&drop->source;

	if (!packet)
		return 0;
	seen = (const void *)&packet->flow.source;
	return seen[0] == dropped[0] && seen[1] == dropped[1] && seen[2] == dropped[2] &&
	       seen[3] == dropped[3];
}

/* Whether the packet is the one that the guard dropped on this CPU just now: the kernel throws it away at
 * once, and not always with a reason that tells. */
static __always_inline int is_guards_own(const struct kernel_drop *drop)
{
	__u32 zero = 0;
	const struct allowance *allowance = bpf_map_lookup_elem(&dropped_allowance, &zero);

	if (!allowance || bpf_jiffies64() - allowance->dropped_tick > GUARDS_OWN_TICKS)
		return 0;
	return has_addresses_of(drop, FLOW_INGRESS) || has_addresses_of(drop, FLOW_EGRESS);
}

static __always_inline void add_to_total(__u32 reason)
{
	__u32 slot = reason < DROP_TOTALS - 1 ? reason : DROP_TOTALS - 1;
	__u64 *total = bpf_map_lookup_elem(&drop_totals, &slot);

	/* Not only one program's run at a time: packets are thrown away in every context of a CPU. */
	if (total)
		__sync_fetch_and_add(total, 1);
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(watch_kernel_drops, struct sk_buff *skb, void *location, enum skb_drop_reason reason)
{
	struct kernel_drop drop __attribute__((aligned(8))) = {.reason = reason};
	__u64 *packets, one = 1;
	__u32 zero = 0;
	void *drops;

	if (reason == SKB_NOT_DROPPED_YET)
		return 0;
	if (bpf_core_enum_value_exists(enum skb_drop_reason, SKB_CONSUMED) &&
	    reason == bpf_core_enum_value(enum skb_drop_reason, SKB_CONSUMED))
		return 0;
	if (!is_of_this_namespace(skb) || !read_dropped(&drop, skb) || is_guards_own(&drop))
		return 0;
	add_to_total(reason);
	drops = bpf_map_lookup_elem(&active_kernel_drops, &zero);
	if (!drops)
		return 0;
	packets = bpf_map_lookup_elem(drops, &drop);
	if (!packets && !bpf_map_update_elem(drops, &drop, &one, BPF_NOEXIST))
		return 0;
	if (!packets)
		packets = bpf_map_lookup_elem(drops, &drop); /* another CPU was first, or there is no room */
	if (packets)
		__sync_fetch_and_add(packets, 1);
	else
		count(COUNTER_KERNEL_DROP_NOT_DETAILED);
	return 0;
}

#endif
