// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * xdp_guard     XDP, arriving frames: verdict (guard.h), then accounting (flows.h). XDP_DROP only where a
 * live block, a rule or a policy of the operator's says so; everything else, and everything it cannot read,
 * is XDP_PASS (fails open: a fault here must not take a node off the network). guard_egress  TC egress (tcx
 * or clsact), leaving frames: operators' rules, then accounting. TC_ACT_SHOT only where a rule says so, else
 * "next program".
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

static __always_inline __u32 packet_flags(const struct packet *packet, int is_audited)
{
	__u32 flags = packet->tcp_flags;

	if (packet->is_fragment)
		flags |= FLOW_FRAGMENT;
	if (is_audited)
		flags |= FLOW_AUDITED;
	return flags;
}

/* A frame without a source that could be judged: verdict says why. */
static __always_inline int judge_unread(const struct packet *packet, enum counter verdict,
					const struct config *settings)
{
	__u32 anomaly = 0;

	if (verdict == COUNTER_MALFORMED)
		anomaly = ANOMALY_MALFORMED;
	else if (verdict == COUNTER_VLAN_TOO_DEEP)
		anomaly = ANOMALY_VLAN_TOO_DEEP;
	if (settings->mode == MODE_OFF || !(settings->drop_anomalies & anomaly)) {
		count(verdict);
		return XDP_PASS;
	}
	verdict = judge_by_policy(COUNTER_DROPPED_ANOMALY, anomaly, settings->mode);
	count(verdict);
	return verdict == COUNTER_DROPPED_ANOMALY ? XDP_DROP : XDP_PASS;
}

static __always_inline int is_dropped(enum counter verdict)
{
	switch (verdict) {
	case COUNTER_DROPPED_EXACT:
	case COUNTER_DROPPED_CIDR:
	case COUNTER_DROPPED_RULE:
	case COUNTER_DROPPED_RATE:
	case COUNTER_DROPPED_SYN:
	case COUNTER_DROPPED_ANOMALY:
		return 1;
	default:
		return 0;
	}
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

	settings = bpf_map_lookup_elem(&config, &zero);
	if (!packet || !settings)
		return XDP_PASS;
	know_time_roughly(packet);
	packet->ifindex = context->ingress_ifindex;
	verdict = read_packet(packet, data, end, end - data);
	if (verdict != COUNTER_PASSED)
		return judge_unread(packet, verdict, settings);
	if (packet->is_fragment)
		count(COUNTER_NON_FIRST_FRAGMENT);

	verdict = judge(packet, settings);
	count(verdict);
	seen.dropped = is_dropped(verdict);
	if (!seen.dropped)
		know_time(packet);
	seen.now = packet->now;
	seen.packets = 1;
	seen.bytes = packet->ip_bytes;
	seen.flags = packet_flags(packet, verdict == COUNTER_AUDITED);
	seen.ifindex = packet->ifindex;
	account(packet, &seen);
	return seen.dropped ? XDP_DROP : XDP_PASS;
}

SEC("tc")
int guard_egress(struct __sk_buff *skb)
{
	struct packet *packet = new_packet(FLOW_EGRESS);
	struct observation seen = {};
	struct config *settings;
	enum counter verdict;
	__u32 zero = 0;

	settings = bpf_map_lookup_elem(&config, &zero);
	if (!packet || !settings)
		return TC_ACT_UNSPEC;
	if (skb->data_end - skb->data < EGRESS_HEADER_BYTES && skb->len > skb->data_end - skb->data)
		bpf_skb_pull_data(skb, skb->len < EGRESS_HEADER_BYTES ? skb->len : EGRESS_HEADER_BYTES);
	if (skb->vlan_present)
		packet->vlan = skb->vlan_tci & VLAN_ID_MASK;
	know_time(packet);
	packet->ifindex = skb->ifindex;
	verdict = read_packet(packet, (void *)(long)skb->data, (void *)(long)skb->data_end, skb->len);
	if (verdict != COUNTER_PASSED) {
		count(COUNTER_EGRESS_UNPARSED);
		return TC_ACT_UNSPEC;
	}
	seen.bytes = packet->ip_bytes;
	/* Segmentation is offloaded: count what the wire will carry. */
	if (skb->gso_segs > 1) {
		packet->packets = skb->gso_segs;
		seen.bytes += (skb->gso_segs - 1) * packet->header_bytes;
	}

	verdict = judge_leaving(packet, settings);
	count(verdict);
	seen.now = packet->now;
	seen.dropped = verdict == COUNTER_EGRESS_DROPPED_RULE || verdict == COUNTER_EGRESS_DROPPED_RATE;
	seen.packets = packet->packets;
	seen.flags = packet_flags(packet, verdict == COUNTER_EGRESS_AUDITED);
	seen.ifindex = packet->ifindex;
	account(packet, &seen);
	return seen.dropped ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
