// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * xdp_guard       XDP, arriving frames: verdict (guard.h), then accounting (flows.h). XDP_DROP only for a
 * source with a live entry in a block map; everything else, and everything it cannot read, is XDP_PASS (fails
 * open: a fault here must not take a node off the network). count_egress    TC egress (tcx or clsact),
 * leaving frames: accounting only, always "next program". watch_handshake tp_btf/inet_sock_set_state: which
 * connections this kernel established itself. Needs the kernel's BTF; without it the program is left out and
 * no flow carries FLOW_ESTABLISHED. No state lives in a process: maps and links are pinned, and go on without
 * the one who loaded them.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "guard.h"
#include "flows.h"

/* Headers that may lie outside the linear part of a socket buffer: Ethernet, tags, IPv6, some extensions,
 * TCP. */
#define EGRESS_HEADER_BYTES 160

#define AF_INET	 2
#define AF_INET6 10

/* The few kernel fields that watch_handshake reads; their offsets come from the running kernel's BTF. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
typedef struct {
	struct net *net;
} possible_net_t;
struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};
#pragma clang attribute pop

static __always_inline __u32 packet_flags(const struct packet *packet, enum counter verdict)
{
	__u32 flags = packet->tcp_flags;

	if (packet->is_fragment)
		flags |= FLOW_FRAGMENT;
	if (verdict == COUNTER_AUDITED)
		flags |= FLOW_AUDITED;
	return flags;
}

SEC("xdp")
int xdp_guard(struct xdp_md *context)
{
	void *data = (void *)(long)context->data;
	void *end = (void *)(long)context->data_end;
	struct packet *packet = new_packet(FLOW_INGRESS);
	struct observation seen = {};
	struct config *settings;
	enum counter verdict;
	__u32 zero = 0;

	if (!packet)
		return XDP_PASS;
	verdict = read_packet(packet, data, end, end - data);
	if (verdict != COUNTER_PASSED) {
		count(verdict);
		return XDP_PASS;
	}
	if (packet->is_fragment)
		count(COUNTER_NON_FIRST_FRAGMENT);
	settings = bpf_map_lookup_elem(&config, &zero);
	if (!settings)
		return XDP_PASS;

	seen.now = bpf_ktime_get_boot_ns();
	verdict = judge(packet, settings, seen.now);
	count(verdict);
	seen.dropped = verdict == COUNTER_DROPPED_EXACT || verdict == COUNTER_DROPPED_CIDR;
	seen.packets = 1;
	seen.bytes = packet->ip_bytes;
	seen.flags = packet_flags(packet, verdict);
	seen.ifindex = context->ingress_ifindex;
	account(packet, &seen);
	return seen.dropped ? XDP_DROP : XDP_PASS;
}

SEC("tc")
int count_egress(struct __sk_buff *skb)
{
	struct packet *packet = new_packet(FLOW_EGRESS);
	struct observation seen = {};
	enum counter verdict;

	if (!packet)
		return TC_ACT_UNSPEC;
	if (skb->data_end - skb->data < EGRESS_HEADER_BYTES && skb->len > skb->data_end - skb->data)
		bpf_skb_pull_data(skb, skb->len < EGRESS_HEADER_BYTES ? skb->len : EGRESS_HEADER_BYTES);
	if (skb->vlan_present)
		packet->vlan = skb->vlan_tci & VLAN_ID_MASK;
	verdict = read_packet(packet, (void *)(long)skb->data, (void *)(long)skb->data_end, skb->len);
	if (verdict != COUNTER_PASSED) {
		count(COUNTER_EGRESS_UNPARSED);
		return TC_ACT_UNSPEC;
	}
	seen.now = bpf_ktime_get_boot_ns();
	seen.packets = 1;
	seen.bytes = packet->ip_bytes;
	/* Segmentation is offloaded: count what the wire will carry. */
	if (skb->gso_segs > 1) {
		seen.packets = skb->gso_segs;
		seen.bytes += (skb->gso_segs - 1) * packet->header_bytes;
	}
	seen.flags = packet_flags(packet, verdict);
	seen.ifindex = skb->ifindex;
	account(packet, &seen);
	return TC_ACT_UNSPEC;
}

static __always_inline int is_watched(const struct sock *sk)
{
	__u32 zero = 0;
	struct config *settings = bpf_map_lookup_elem(&config, &zero);

	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP || !settings)
		return 0;
	return settings->netns_inum == 0 ||
	       settings->netns_inum == BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(watch_handshake, const struct sock *sk, int from, int to)
{
	struct flow_key arriving = {.protocol = IPPROTO_TCP, .direction = FLOW_INGRESS};
	int completes = to == BPF_TCP_ESTABLISHED && (from == BPF_TCP_SYN_RECV || from == BPF_TCP_SYN_SENT);
	__u16 family;

	if ((!completes && to != BPF_TCP_CLOSE) || !is_watched(sk))
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family == AF_INET) {
		map_ipv4(&arriving.source, BPF_CORE_READ(sk, __sk_common.skc_daddr));
		map_ipv4(&arriving.destination, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
	} else if (family == AF_INET6) {
		BPF_CORE_READ_INTO(&arriving.source, sk, __sk_common.skc_v6_daddr);
		BPF_CORE_READ_INTO(&arriving.destination, sk, __sk_common.skc_v6_rcv_saddr);
	} else {
		return 0;
	}
	arriving.source_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	arriving.destination_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (completes)
		mark_established(&arriving, bpf_ktime_get_boot_ns());
	else
		bpf_map_delete_elem(&established, &arriving);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
