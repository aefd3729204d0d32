/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Rates, and the sample of events that is reported. A bucket is one number, the time at which it is empty
 * again (the generic cell rate algorithm of the ATM Forum's Traffic Management 4.0), so one
 * compare-and-exchange takes a packet's share, and no lock is needed.
 */
#ifndef TOLLWARD_RATES_H
#define TOLLWARD_RATES_H

#include "packet.h"

/* Other CPUs take their shares at the same time. A packet that loses so often passes, counted. */
#define EXCHANGES_MAX 4
/* An offloaded packet of 512 KiB is 370 segments. */
#define SEGMENTS_MAX 1024
/* Fibonacci hashing: the upper bits of the product are spread evenly. */
#define HASH_FACTOR 2654435769U
#define HASH_SHIFT  24

/* Takes the share of so many packets out of a bucket. Not 0: it is used up, and nothing was taken. */
static __always_inline int is_over(__u64 *empty_ns, const struct rate *rate, __u32 packets, __u64 now)
{
	__u64 interval_ns = rate->interval_ns;
	__u64 tolerance_ns = rate->tolerance_ns;

	if (packets > SEGMENTS_MAX)
		packets = SEGMENTS_MAX;
	for (int i = 0; i < EXCHANGES_MAX; i++) {
		__u64 known = *(volatile __u64 *)empty_ns;
		__u64 from = known > now ? known : now;

		/* Further ahead than this rate lets anybody get: another rate had the id before. */
		if (from - now > tolerance_ns + interval_ns * SEGMENTS_MAX)
			from = now;
		if (from - now > tolerance_ns)
			return 1;
		if (__sync_val_compare_and_swap(empty_ns, known, from + interval_ns * packets) == known)
			return 0;
	}
	count(COUNTER_RATE_CONTENDED);
	return 0;
}

/*
 * As is_over, of the bucket that the peer of this direction's packet has: who sent it, or whom it goes to. A
 * function of its own, so that the verifier goes through it once, and not wherever it is called.
 */
__noinline int is_peer_over(__u32 direction, __u32 kind, __u32 id, __u64 interval_ns, __u64 tolerance_ns)
{
	struct packet *packet = bpf_map_lookup_elem(&packets, &direction);
	const struct rate rate = {.interval_ns = interval_ns, .tolerance_ns = tolerance_ns};
	struct bucket_key key = {.id = id, .kind = kind};
	const struct address *peer;
	__u64 *empty_ns;
	__u64 first;

	if (!packet)
		return 0;
	know_time(packet);
	peer = direction == DIRECTION_INGRESS ? &packet->flow.source : &packet->flow.destination;
	__builtin_memcpy(key.address.bytes, peer->bytes, 8);
	if (packet->ethernet_protocol == ETH_P_IP)
		__builtin_memcpy(key.address.bytes + 8, peer->bytes + 8, 8);
	empty_ns = bpf_map_lookup_elem(&buckets, &key);
	if (empty_ns)
		return is_over(empty_ns, &rate, packet->packets, packet->now);
	first = packet->now + interval_ns * packet->packets;
	if (!bpf_map_update_elem(&buckets, &key, &first, BPF_NOEXIST))
		return 0;
	/* Another CPU was first; or there is no memory, and the packet passes. */
	empty_ns = bpf_map_lookup_elem(&buckets, &key);
	return empty_ns ? is_over(empty_ns, &rate, packet->packets, packet->now) : 0;
}

static __noinline void submit(const struct guard_event *record)
{
	if (bpf_ringbuf_output(&guard_events, (void *)record, sizeof(*record), BPF_RB_NO_WAKEUP))
		count(COUNTER_GUARD_EVENT_LOST);
}

/*
 * Reports a verdict on the packet of this direction, if the rate of such records is not used up on this CPU.
 * A function of its own, and verified once, as it is called from many places.
 */
__noinline int report(__u32 direction, __u32 origin, __u32 verdict, __u32 id, __u32 prefix_length)
{
	__u32 zero = 0;
	__u32 slot = (((id * 4 + origin) * 64 + verdict) * HASH_FACTOR) >> HASH_SHIFT;
	struct packet *packet = bpf_map_lookup_elem(&packets, &direction);
	struct config *settings = bpf_map_lookup_elem(&config, &zero);
	__u64 *empty_ns = bpf_map_lookup_elem(&event_rates, &slot);

	if (!packet || !settings || !empty_ns || settings->events.interval_ns == 0)
		return 0;
	if (is_over(empty_ns, &settings->events, 1, packet->now))
		return 0;
	struct guard_event event = {
		.at_ns = packet->now,
		.source = packet->flow.source,
		.destination = packet->flow.destination,
		.source_port = packet->shows_ports ? packet->source_port : packet->flow.source_port,
		.destination_port =
			packet->shows_ports ? packet->destination_port : packet->flow.destination_port,
		.protocol = packet->shows_ports ? packet->protocol : packet->flow.protocol,
		.direction = direction,
		.origin = origin,
		.verdict = verdict,
		.ifindex = packet->ifindex,
		.id = id,
		.ip_bytes = packet->ip_bytes,
		.prefix_length = prefix_length,
	};

	submit(&event);
	return 0;
}

#endif
