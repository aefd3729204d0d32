// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * xdp_guard     XDP, arriving frames: verdict (guard.h), then accounting (flows.h). XDP_DROP only for a
 *               source with a live entry in a block map; everything else, and everything it cannot read, is
 *               XDP_PASS (fails open: a fault here must not take a node off the network).
 * guard_egress  TC egress (tcx or clsact), leaving frames: accounting only, always "next program".
 *
 * What is asked of the kernel's own TCP is in who.h. No state lives in a process: maps and links are pinned,
 * and go on without the one who loaded them.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "guard.h"
#include "flows.h"
#include "who.h"
#include "drops.h"

/* Headers that may lie outside the linear part of a socket buffer: Ethernet, tags, IPv6, some extensions,
 * TCP. */
#define EGRESS_HEADER_BYTES 160

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
int guard_egress(struct __sk_buff *skb)
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

char LICENSE[] SEC("license") = "Dual BSD/GPL";
