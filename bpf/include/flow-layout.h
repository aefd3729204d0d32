/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What kernel and user space share of flows; as layout.h says. libs/libbpf/src/flow-layout.ts reads the same
 * bytes. */
#ifndef TOLLWARD_FLOW_LAYOUT_H
#define TOLLWARD_FLOW_LAYOUT_H

#include "layout.h"

enum flow_direction {
	FLOW_INGRESS = 0,
	FLOW_EGRESS = 1,
};

struct flow_key {
	struct address source;
	struct address destination;
	__u16 source_port;
	__u16 destination_port; /* ICMP: type << 8 | code */
	__u8 protocol;
	__u8 direction;
	__u16 zero;
};

/* Bits 0-7 of flags are the TCP flags of all packets OR-ed. */
enum flow_flag {
	FLOW_TCP_FLAGS = 0xff,
	FLOW_ESTABLISHED = 1 << 16, /* this kernel completed the handshake: the source is not forged */
	FLOW_FRAGMENT = 1 << 17,    /* non-first fragments, counted without ports */
	FLOW_AUDITED = 1 << 18,	    /* would have been dropped, were it not for audit mode */
};

struct flow {
	__u64 packets;
	__u64 bytes; /* of IP, headers included; of dropped packets too */
	__u64 dropped_packets;
	__u64 first_seen_ns;
	__u64 last_seen_ns;
	__u32 pure_syns; /* SYN without ACK */
	__u32 flags;
	__u32 ifindex;
	__u32 vlan; /* outermost id, 0: none */
};

/* Record of the ring spilled_flows: a packet for which the flow map had no room. */
struct spilled_flow {
	struct flow_key key;
	struct flow flow;
};

CHECK_SIZE(struct flow_key, 40);
CHECK_OFFSET(struct flow_key, source_port, 32);
CHECK_OFFSET(struct flow_key, protocol, 36);
CHECK_SIZE(struct flow, 56);
CHECK_OFFSET(struct flow, pure_syns, 40);
CHECK_SIZE(struct spilled_flow, 96);

#endif
