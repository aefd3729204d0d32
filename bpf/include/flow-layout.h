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
	FLOW_CLOSED = 1 << 19,	    /* this kernel's socket was closed, reset or given up */
};

/* Set in cgroup_id where the process is in no group of the unified hierarchy: the id is one of the old
 * hierarchy that has the memory controller. */
#define CGROUP_OF_MEMORY_HIERARCHY (1ULL << 63)
#define PROCESS_NAME_BYTES	   16

/* What this kernel's TCP knows of a connection; all 0 where it knows nothing. Of connected UDP sockets the
 * process alone. */
struct connection {
	__u64 cgroup_id;
	__u32 process_id; /* as seen from the sensor's PID namespace; 0: not to be seen from there */
	__u32 rtt_us;	  /* smoothed */
	char process_name[PROCESS_NAME_BYTES];
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
	struct connection connection;
};

/* Value of "connections", which is keyed as the flow that arrives. */
struct connection_state {
	struct connection connection;
	__u64 established_ns; /* 0: no handshake was completed, as far as is known */
	__u64 closed_ns;      /* 0: open */
	__u64 is_foreign; /* 1: of another network namespace, as containers have; believed of its owner alone
			   */
};

/* Record of the ring spilled_flows: a packet for which the flow map had no room. */
struct spilled_flow {
	struct flow_key key;
	struct flow flow;
};

/* Key of "kernel_drops_a" and "_b": packets that the kernel threw away by its own reasons; value: __u64
 * packets.
 */
struct kernel_drop {
	struct address source;
	struct address destination;
	__u16 source_port;
	__u16 destination_port;
	__u32 protocol;
	__u32 reason; /* enum skb_drop_reason of the running kernel */
};

CHECK_SIZE(struct flow_key, 40);
CHECK_OFFSET(struct flow_key, source_port, 32);
CHECK_OFFSET(struct flow_key, protocol, 36);
CHECK_SIZE(struct connection, 32);
CHECK_SIZE(struct connection_state, 56);
CHECK_SIZE(struct flow, 88);
CHECK_OFFSET(struct flow, pure_syns, 40);
CHECK_OFFSET(struct flow, connection, 56);
CHECK_SIZE(struct spilled_flow, 128);
CHECK_SIZE(struct kernel_drop, 44);

#endif
