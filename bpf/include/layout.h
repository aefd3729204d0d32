/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What kernel and user space share: keys and values of the maps, records of the rings; of flows in
 * flow-layout.h. libs/libbpf/src/layout.ts and flow-layout.ts read and write the same bytes; a test compares
 * both through the object's BTF.
 * Addresses are always 16 bytes, IPv4 as ::ffff:a.b.c.d; ports and lengths are in host byte order; times are
 * nanoseconds of CLOCK_BOOTTIME. Structures have no holes, so that they can be hash keys and compared as
 * bytes. Whatever changes here changes LAYOUT_VERSION: pinned maps of another version are never adopted.
 */
#ifndef TOLLWARD_LAYOUT_H
#define TOLLWARD_LAYOUT_H

#include <linux/types.h>

#define LAYOUT_VERSION	     2
#define MANAGEMENT_PORTS_MAX 16

#define CHECK_SIZE(type, size)	      _Static_assert(sizeof(type) == (size), #type " has another size")
#define CHECK_OFFSET(type, field, at) _Static_assert(__builtin_offsetof(type, field) == (at), #field " moved")

struct address {
	__u8 bytes[16];
};

enum guard_mode {
	MODE_OFF = 0,
	MODE_AUDIT = 1,
	MODE_ENFORCE = 2,
};

/* The only element of the map "config". All zero (a fresh map) means: judge nothing, account everything. */
struct config {
	__u32 layout_version;
	__u32 mode;
	__u32 netns_inum; /* inode of /proc/self/ns/net; handshakes of other namespaces mean nothing. 0: any
			   */
	__u32 zero;
	__u16 management_ports[MANAGEMENT_PORTS_MAX]; /* 0: slot not used */
};

enum block_mode {
	BLOCK_DROP = 0,
	BLOCK_AUDIT = 1,
};

/* Value of block_exact, block_cidr4 and block_cidr6. */
struct block {
	__u64 expires_ns;   /* 0: never */
	__u64 hits;	    /* packets that matched while the entry was live, dropped or audited */
	__u64 first_hit_ns; /* first packet dropped by this entry; 0: none yet */
	__u64 last_hit_ns;
	__u32 rule_id; /* user space's own number for what put the entry here */
	__u8 mode;
	__u8 prefix_length; /* as in the key: the way back to the next wider prefix */
	__u16 zero;
};

struct cidr4_key {
	__u32 prefix_length;
	__u8 address[4];
};

struct cidr6_key {
	__u32 prefix_length;
	__u8 address[16];
};

/* Record of the ring first_hits: the first packet that an entry drops, once per entry. */
struct first_hit {
	__u64 at_ns;
	struct address source;
	__u32 rule_id;
	__u32 prefix_length; /* 128: exact entry; else as in the CIDR key */
};

/* Index into the per-CPU map "counters". The verdicts come first: each packet counts under exactly one. */
enum counter {
	COUNTER_PASSED = 0,
	COUNTER_OFF = 1,
	COUNTER_GUARDED_ADDRESS = 2,
	COUNTER_MANAGEMENT_PORT = 3,
	COUNTER_DROPPED_EXACT = 4,
	COUNTER_DROPPED_CIDR = 5,
	COUNTER_AUDITED = 6,
	COUNTER_NOT_IP = 7,
	COUNTER_MALFORMED = 8,
	COUNTER_VLAN_TOO_DEEP = 9,
	/* Observations beside the verdict. */
	COUNTER_EXPIRED_SEEN = 16,
	COUNTER_TOO_MANY_EXTENSION_HEADERS = 17,
	COUNTER_TRUNCATED_TRANSPORT = 18,
	COUNTER_NON_FIRST_FRAGMENT = 19,
	COUNTER_LENGTH_BEYOND_FRAME = 20,
	COUNTER_CIDR_CHAIN_TOO_LONG = 21,
	COUNTER_FIRST_HIT_LOST = 22,
	/* Losses of the flow accounting. */
	COUNTER_FLOW_MAP_FULL = 24,
	COUNTER_FLOW_MAP_BUSY = 25,
	COUNTER_FLOW_SPILL_LOST = 26,
	COUNTER_EGRESS_UNPARSED = 27,
	COUNTER_SLOTS = 96,
};

CHECK_SIZE(struct address, 16);
CHECK_SIZE(struct config, 48);
CHECK_OFFSET(struct config, management_ports, 16);
CHECK_SIZE(struct block, 40);
CHECK_OFFSET(struct block, rule_id, 32);
CHECK_OFFSET(struct block, prefix_length, 37);
CHECK_SIZE(struct cidr4_key, 8);
CHECK_SIZE(struct cidr6_key, 20);
CHECK_SIZE(struct first_hit, 32);

#endif
