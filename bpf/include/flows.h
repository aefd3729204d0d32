/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flow accounting: one entry for each 5-tuple and direction since the last change of generation. Counters are
 * added atomically, so every hook may write. A packet for which there is no room goes to a ring, and what the
 * ring has no room for is counted.
 */
#ifndef TOLLWARD_FLOWS_H
#define TOLLWARD_FLOWS_H

#include "packet.h"

/* As long as the kernel itself waits for stray packets of a closed connection (TCP_TIMEWAIT_LEN). */
#define CLOSED_REMEMBERED_NS (60ULL * 1000 * 1000 * 1000)
/* 56 + 40 bytes and the table's own, preallocated: 11 MiB. The least recently used go first: the closed ones,
 * which no packet asks for. */
#define CONNECTIONS_MAX 65536

/*
 * Of packets that the guard drops so many are put into flows, on each CPU in each 134 ms: 7,600 a second. The
 * first of a source costs five times what its verdict costs. A flood beyond that costs its verdict alone, and
 * pushes no caller's flow out; it is in the counters of verdicts, and in the hits of its block.
 */
#define DROPPED_IN_FLOWS     1024
#define DROPPED_WINDOW_SHIFT 27

#ifndef E2BIG
#define E2BIG 7
#endif

/* Keyed as the flow that arrives; written by who.h. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CONNECTIONS_MAX);
	__type(key, struct flow_key);
	__type(value, struct connection_state);
} connections SEC(".maps");

struct allowance {
	__u64 window;
	__u64 used;
	__u64 dropped_tick; /* in which this CPU dropped the last packet */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct allowance);
} dropped_allowance SEC(".maps");

struct observation {
	__u64 now;
	__u32 packets;
	__u32 bytes;
	__u32 flags;
	__u32 ifindex;
	__u8 dropped;
};

static __always_inline void reverse(struct flow_key *to, const struct flow_key *from)
{
	to->source = from->destination;
	to->destination = from->source;
	to->source_port = from->destination_port;
	to->destination_port = from->source_port;
	to->protocol = from->protocol;
	to->direction = from->direction == FLOW_INGRESS ? FLOW_EGRESS : FLOW_INGRESS;
	to->zero = 0;
}

/* The same 5-tuple as a socket's own key in "connections": what arrives at it. */
static __always_inline void mirror(struct flow_key *to, const struct flow_key *from)
{
	reverse(to, from);
	to->direction = FLOW_INGRESS;
}

/*
 * What is known of the flow's connection. What arrives at this node from a container, or leaves for it, is
 * for the container's socket the other way about. Connections that were closed are remembered for their last
 * packets; a pure SYN is none of them, as it asks for a new connection.
 */
static __always_inline const struct connection_state *find_connection(const struct flow_key *key, __u64 now)
{
	const struct connection_state *found;
	struct flow_key same = *key, mirrored;

	if (key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP)
		return 0;
	same.direction = FLOW_INGRESS;
	mirror(&mirrored, key);
	found = bpf_map_lookup_elem(&connections, key->direction == FLOW_INGRESS ? &same : &mirrored);
	if (!found) {
		found = bpf_map_lookup_elem(&connections, key->direction == FLOW_INGRESS ? &mirrored : &same);
		if (found && !found->is_foreign)
			return 0;
	}
	if (found && found->closed_ns && now - found->closed_ns > CLOSED_REMEMBERED_NS)
		return 0;
	return found;
}

static __always_inline void set_flags(struct flow *flow, __u32 flags)
{
	if ((flow->flags & flags) != flags)
		__sync_fetch_and_or(&flow->flags, flags);
}

static __always_inline void add_to_flow(struct flow *flow, const struct packet *packet,
					const struct observation *seen)
{
	__sync_fetch_and_add(&flow->packets, seen->packets);
	__sync_fetch_and_add(&flow->bytes, seen->bytes);
	if (seen->dropped)
		__sync_fetch_and_add(&flow->dropped_packets, seen->packets);
	if (is_pure_syn(packet->tcp_flags))
		__sync_fetch_and_add(&flow->pure_syns, 1);
	flow->last_seen_ns = seen->now;
	set_flags(flow, seen->flags);
}

static __always_inline void tell_connection(struct flow *flow, const struct connection_state *state)
{
	if (!state)
		return;
	flow->connection = state->connection;
	if (state->established_ns)
		flow->flags |= FLOW_ESTABLISHED;
	if (state->closed_ns)
		flow->flags |= FLOW_CLOSED;
}

static __always_inline int is_beyond_allowance(__u64 now)
{
	__u32 zero = 0;
	struct allowance *allowance = bpf_map_lookup_elem(&dropped_allowance, &zero);

	if (!allowance)
		return 0;
	allowance->dropped_tick = bpf_jiffies64();
	if (allowance->window != now >> DROPPED_WINDOW_SHIFT) {
		allowance->window = now >> DROPPED_WINDOW_SHIFT;
		allowance->used = 0;
	}
	return allowance->used++ >= DROPPED_IN_FLOWS;
}

static __noinline void spill(const struct spilled_flow *record)
{
	if (bpf_ringbuf_output(&spilled_flows, (void *)record, sizeof(*record), BPF_RB_NO_WAKEUP))
		count(COUNTER_FLOW_SPILL_LOST);
}

/* Makes the entry of a flow that has none yet. A function of its own: its record would fill the caller's
 * stack.
 */
static __noinline void begin_flow(void *flows, const struct packet *packet, const struct observation *seen)
{
	const struct flow_key *key = &packet->flow;
	struct spilled_flow first = {.key = *key,
				     .flow = {
					     .packets = seen->packets,
					     .bytes = seen->bytes,
					     .dropped_packets = seen->dropped ? seen->packets : 0,
					     .first_seen_ns = seen->now,
					     .last_seen_ns = seen->now,
					     .pure_syns = is_pure_syn(packet->tcp_flags),
					     .flags = seen->flags,
					     .ifindex = seen->ifindex,
					     .vlan = packet->vlan,
				     }};
	struct flow *flow;
	long error;

	if (!is_pure_syn(packet->tcp_flags))
		tell_connection(&first.flow, find_connection(key, seen->now));
	error = bpf_map_update_elem(flows, key, &first.flow, BPF_NOEXIST);
	if (!error)
		return;
	/* Another CPU was first. */
	flow = bpf_map_lookup_elem(flows, key);
	if (flow) {
		add_to_flow(flow, packet, seen);
		return;
	}
	count(error == -E2BIG ? COUNTER_FLOW_MAP_FULL : COUNTER_FLOW_MAP_BUSY);
	spill(&first);
}

static __always_inline void account(const struct packet *packet, const struct observation *seen)
{
	__u32 zero = 0;
	struct flow *flow;
	void *flows;

	if (seen->dropped && is_beyond_allowance(seen->now)) {
		count(COUNTER_DROPPED_BEYOND_FLOWS);
		return;
	}
	flows = bpf_map_lookup_elem(&active_flows, &zero);
	if (!flows)
		return;
	flow = bpf_map_lookup_elem(flows, &packet->flow);
	if (flow)
		add_to_flow(flow, packet, seen);
	else
		begin_flow(flows, packet, seen);
}

static __always_inline void tell_flow(void *flows, const struct flow_key *key,
				      const struct connection *connection, __u32 flags)
{
	struct flow *flow = bpf_map_lookup_elem(flows, key);

	if (!flow)
		return;
	if (connection)
		flow->connection = *connection;
	set_flags(flow, flags);
}

/* What was learned of this connection: its entries say so now, and those of later generations when made.
 * `connection` is 0 where only the flags are news. */
static __always_inline void tell_flows(const struct flow_key *arriving, const struct connection *connection,
				       __u32 flags, int is_foreign)
{
	struct flow_key key = *arriving;
	__u32 zero = 0;
	void *flows = bpf_map_lookup_elem(&active_flows, &zero);

	if (!flows)
		return;
	tell_flow(flows, &key, connection, flags);
	if (is_foreign) {
		key.direction = FLOW_EGRESS;
		tell_flow(flows, &key, connection, flags);
	}
	reverse(&key, arriving);
	tell_flow(flows, &key, connection, flags);
	if (is_foreign) {
		key.direction = FLOW_INGRESS;
		tell_flow(flows, &key, connection, flags);
	}
}

#endif
