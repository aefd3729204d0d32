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

#define LAYOUT_VERSION	     4
#define MANAGEMENT_PORTS_MAX 16

#define CHECK_SIZE(type, size)	      _Static_assert(sizeof(type) == (size), #type " has another size")
#define CHECK_OFFSET(type, field, at) _Static_assert(__builtin_offsetof(type, field) == (at), #field " moved")

struct address {
	__u8 bytes[16];
};

enum direction {
	DIRECTION_INGRESS = 0,
	DIRECTION_EGRESS = 1,
};

enum guard_mode {
	MODE_OFF = 0,
	MODE_AUDIT = 1,
	MODE_ENFORCE = 2,
};

/* What is wrong with a packet, as bits: each is counted, and dropped where config.drop_anomalies says so. */
enum anomaly {
	ANOMALY_MALFORMED = 1 << 0, /* no valid IP header: no source that could be guarded or allowed */
	ANOMALY_VLAN_TOO_DEEP = 1 << 1,
	ANOMALY_TRUNCATED_TRANSPORT = 1 << 2,
	ANOMALY_TOO_MANY_EXTENSION_HEADERS = 1 << 3,
	ANOMALY_LENGTH_BEYOND_FRAME = 1 << 4,
	ANOMALY_TINY_FRAGMENT = 1 << 5, /* a first fragment without the whole transport header; RFC 1858 */
	ANOMALY_BAD_TCP = 1 << 6,	/* flags or header length that no TCP sends */
};

/* Whether a packet whose ports nobody knows can match a rule that names ports. */
enum unknown_transport {
	UNKNOWN_JUDGED = 0, /* as if it had the port of any rule that drops or limits: none slips past */
	UNKNOWN_PASSED = 1, /* no rule with ports matches it */
};

/*
 * A rate, for a bucket that holds one number: the time at which it is empty again (GCRA). So many nanoseconds
 * a packet, and so many that it may be ahead of them; interval 0: no limit.
 */
struct rate {
	__u64 interval_ns;
	__u64 tolerance_ns;
};

/* The only element of the map "config". All zero (a fresh map) means: judge nothing, account everything. */
struct config {
	__u32 layout_version;
	__u32 mode;
	__u32 netns_inum; /* inode of /proc/self/ns/net; handshakes of other namespaces mean nothing. 0: any
			   */
	__u32 drop_anomalies;			      /* enum anomaly; the others pass, counted */
	__u16 management_ports[MANAGEMENT_PORTS_MAX]; /* 0: slot not used */
	struct rate syn_source;			      /* SYN without ACK of one source (IPv6: its /64) */
	struct rate syn_port;			      /* SYN without ACK to one port of this node */
	struct rate events; /* records of guard_events, of each rule, block or reason and CPU */
	__u32 syn_mode;	    /* enum block_mode: drop or audit */
	__u32 unknown_transport;
	__u32 pidns_inum; /* inode of /proc/self/ns/pid, in whose numbers processes are told; 0: the first */
	__u32 zero;
};

/*
 * The only element of the map "guarded_filter". Of each guarded address the bit is set that its hash says:
 * the two halves of the address, as little-endian numbers, xor, times 2^64 / phi, the upper 9 bits.
 */
#define GUARDED_FILTER_FACTOR 0x9e3779b97f4a7c15ULL
#define GUARDED_FILTER_SHIFT  55

struct guarded_filter {
	__u64 bits[8];
};

enum block_mode {
	BLOCK_DROP = 0,
	BLOCK_AUDIT = 1,
	BLOCK_RATE_LIMIT = 2,
};

/*
 * What the kernel counts of a block: packets that matched while it was live, dropped or audited; and
 * HITS_TOLD, once there was a record of the first that it dropped.
 */
#define HITS_TOLD (1ULL << 63)

/* Value of block_overflow, block_cidr4 and block_cidr6. */
struct block {
	__u64 expires_ns; /* 0: never */
	__u64 hits;	  /* written by the kernel */
	__u32 rule_id;	  /* user space's own number for what put the entry here */
	__u8 mode;
	__u8 prefix_length;	  /* as in the key: the way back to the next wider prefix */
	__u16 packets_per_second; /* rate-limit: of each source; as many may come at once */
};

/*
 * The table of exact addresses: an array of buckets of a cache line each, of which user space maps the
 * memory. A bucket holds two addresses of IPv4, or one that is wide: of IPv6, in the first slot, with the
 * address where the second has its terms. An address lies in its home, the bucket that its hash says, or in
 * one of the next. Only user space writes here, and it is alone in it, but for hits; those are at the same
 * two places of every bucket, so a kernel that comes late counts for the wrong block, and breaks none.
 *
 * head is one word, so each change of it is seen whole. Of each slot:
 *
 *   SLOT_LIVE      the slot holds a block. Its address never changes while this is set.
 *   SLOT_WIDE      the block is that of a wide address; the second slot is none.
 *   version	    another with each change of what the slot holds: who read the same before and after has
 *		    read one block, and not halves of two.
 *
 * Of a bucket's first slot, as the home of addresses:
 *
 *   SLOT_OVERFLOW  block_overflow holds some of them: they found no room.
 *   reach          so many buckets, from this one on, may hold some of them. It covers each as long as it is
 *		    there, so no block is missed however others come and go, and none moves.
 *
 * terms is one word, too: the expiry in units of 2^SLOT_EXPIRY_SHIFT ns, rounded up (0: never), above the
 * packets a second, above the mode.
 */
#define SLOT_LIVE	   1
#define SLOT_OVERFLOW	   2
#define SLOT_WIDE	   4
#define SLOT_REACH_SHIFT   3
#define SLOT_REACH_MASK	   0x7f
#define SLOT_VERSION_SHIFT 10
/* At two buckets for each block, a few of a million of IPv6 find no room within so many; of IPv4 none. */
#define SLOT_REACH_MAX	  32
#define SLOT_EXPIRY_SHIFT 20
#define SLOT_RATE_SHIFT	  8
#define SLOT_TIME_SHIFT	  24

struct block_slot {
	__u8 address[4]; /* of IPv4 */
	__u32 head;
	__u64 terms;
	__u32 rule_id;
	__u32 zero;
	__u64 hits;
};

struct block_bucket {
	struct block_slot first;
	struct block_slot second;
};

/* Where a wide address lies in its bucket. */
#define WIDE_ADDRESS 40

/*
 * The only element of the map "block_hash": where the home of an address is, by numbers that user space draws
 * for each table, so that nobody can choose addresses whose homes are one. With the four words of the address
 * as little-endian numbers: the upper half of addend + sum of factor * word (mod 2^64), which two addresses
 * share as seldom as chance has it; mixed, so that neighbours do not lie in rows; times homes, the upper
 * half.
 */
#define BLOCK_HASH_MIX 0x846ca68b

struct block_hash {
	__u64 factors[4];
	__u64 addend;
	__u32 homes; /* 0: there is no table yet */
	__u32 zero;
};

/*
 * Key of the hash block_cidr4. Which prefix lengths to look for is in block_lengths4, by the first 16 bits of
 * an IPv4 address: bit 32 - length for each block that lies in that /16 or covers it. /32 is an exact block.
 */
#define BLOCK_LENGTH_EXACT 1ULL

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

/*
 * Rules. The set that is in force is that of rule_set.generation. In it the rules of a direction are numbered
 * in their order; rule_match says, for a value of one dimension of a packet, which of them that dimension
 * lets match, and the first whose bit is set in all dimensions is the first that matches. So a look-up costs
 * three searches in a trie and a few words, however many rules there are.
 */
#define RULES_MAX	 1024 /* of each direction */
#define RULE_BITS_WORDS	 (RULES_MAX / 64)
#define RULE_GENERATIONS 2
/* Ids: those of both directions and of both generations, so that a new rule takes no number still in use. */
#define RULE_IDS 4096

enum rule_dimension {
	RULE_SOURCE = 0,
	RULE_DESTINATION = 1,
	RULE_TRANSPORT = 2,	    /* protocol, port of the destination */
	RULE_UNKNOWN_TRANSPORT = 3, /* protocol, of packets whose ports nobody knows; see UNKNOWN_JUDGED */
};

enum rule_action {
	RULE_DROP = 0,
	RULE_ALLOW = 1,
	RULE_ALERT = 2,
	RULE_RATE_LIMIT = 3,
};

enum rule_mode {
	RULE_ENFORCE = 0,
	RULE_AUDIT = 1,
};

/* The only element of the map "rule_set". */
struct rule_set {
	__u32 generation;
	__u32 ingress_rules; /* 0: none is looked up */
	__u32 egress_rules;
	__u32 zero;
};

/* Key of the trie rule_match: the longest prefix that fits holds the bits of all shorter ones, too. */
struct rule_match_key {
	__u32 prefix_length; /* 32 + bits of value */
	__u8 generation;
	__u8 direction;
	__u8 dimension;
	__u8 family;	/* of addresses: 4 or 6, as ::/0 is no IPv4; else 0 */
	__u8 value[16]; /* address; or protocol, port high, port low */
};

struct rule_bits {
	__u64 summary; /* bit i: words[i] is not 0 */
	__u64 words[RULE_BITS_WORDS];
};

/* Value of the array rules, at (generation * 2 + direction) * RULES_MAX + number. */
struct rule {
	__u64 expires_ns; /* 0: never */
	struct rate rate;
	__u32 id; /* place in rule_counts, and in events: of one rule for as long as it lives */
	__u8 action;
	__u8 mode;
	__u16 zero;
};

/* Value of the per-CPU map rule_counts. */
struct rule_count {
	__u64 matched;
	__u64 over; /* dropped, or would have been */
	__u64 last_ns;
};

/* Key of buckets; the value is a time in nanoseconds, see struct rate. */
enum bucket_kind {
	BUCKET_RULE = 0,
	BUCKET_BLOCK = 1,
	BUCKET_SYN_SOURCE = 2,
};

struct bucket_key {
	struct address address; /* IPv6: the first 64 bits, or a sender has 2^64 buckets */
	__u32 id;
	__u32 kind;
};

/* What the first fragment of a datagram says of the others. Key of the map fragments. */
struct fragment_key {
	struct address source;
	struct address destination;
	__u32 id;
	__u8 protocol; /* IPv6: 0, since only the first fragment's counts (RFC 8200, 4.5) */
	__u8 direction;
	__u16 zero;
};

struct fragment {
	__u64 expires_ns;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 has_ports;
	__u16 zero;
};

/* Why there is a record in guard_events. */
enum event_origin {
	EVENT_BLOCK = 0,  /* id: rule_id of the block */
	EVENT_RULE = 1,	  /* id: that of the rule */
	EVENT_POLICY = 2, /* SYN budget or malformed; id: 0, or the anomalies */
};

/* Record of the ring guard_events: a sample of what was dropped, audited or matched by an alert. */
struct guard_event {
	__u64 at_ns;
	struct address source;
	struct address destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 direction;
	__u8 origin;
	__u8 verdict; /* enum counter of arriving packets, for leaving ones too; or COUNTER_RULE_ALERTED */
	__u32 ifindex;
	__u32 id;
	__u32 ip_bytes;
	__u32 prefix_length; /* of a block, as in first_hit */
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
	COUNTER_ALLOWED = 10,
	COUNTER_DROPPED_RULE = 11,
	COUNTER_DROPPED_RATE = 12, /* beyond the rate of a rule or block */
	COUNTER_DROPPED_SYN = 13,
	COUNTER_DROPPED_ANOMALY = 14,
	/* Observations beside the verdict. */
	COUNTER_EXPIRED_SEEN = 16,
	COUNTER_TOO_MANY_EXTENSION_HEADERS = 17,
	COUNTER_TRUNCATED_TRANSPORT = 18,
	COUNTER_NON_FIRST_FRAGMENT = 19,
	COUNTER_LENGTH_BEYOND_FRAME = 20,
	COUNTER_CIDR_CHAIN_TOO_LONG = 21,
	COUNTER_FIRST_HIT_LOST = 22,
	COUNTER_GUARD_EVENT_LOST = 23,
	/* Losses of the flow accounting. */
	COUNTER_FLOW_MAP_FULL = 24,
	COUNTER_FLOW_MAP_BUSY = 25,
	COUNTER_FLOW_SPILL_LOST = 26,
	COUNTER_EGRESS_UNPARSED = 27,
	/* More observations. */
	COUNTER_TINY_FRAGMENT = 28,
	COUNTER_FRAGMENT_WITHOUT_FIRST = 29,
	COUNTER_BAD_TCP = 30,
	COUNTER_UNKNOWN_TRANSPORT = 31, /* met a rule that drops or limits, without showing its ports */
	COUNTER_RULE_ALERTED = 32,
	COUNTER_RULE_CHAIN_TOO_LONG = 33,
	COUNTER_RATE_CONTENDED = 34,
	/* Verdicts on leaving packets: each that could be read counts under exactly one. */
	COUNTER_EGRESS_PASSED = 36,
	COUNTER_EGRESS_EXEMPT = 37, /* guarded address or management port */
	COUNTER_EGRESS_ALLOWED = 38,
	COUNTER_EGRESS_AUDITED = 39,
	COUNTER_EGRESS_DROPPED_RULE = 40,
	COUNTER_EGRESS_DROPPED_RATE = 41,
	/* Of sockets and of what the kernel drops. */
	COUNTER_SOCKET_NOT_REMEMBERED = 48,
	COUNTER_KERNEL_DROP_NOT_DETAILED = 49,
	COUNTER_DROPPED_BEYOND_FLOWS = 50,
	COUNTER_SLOTS = 96,
};

CHECK_SIZE(struct address, 16);
CHECK_SIZE(struct rate, 16);
CHECK_SIZE(struct config, 112);
CHECK_OFFSET(struct config, management_ports, 16);
CHECK_OFFSET(struct config, syn_source, 48);
CHECK_OFFSET(struct config, syn_mode, 96);
CHECK_SIZE(struct guarded_filter, 64);
CHECK_SIZE(struct block, 24);
CHECK_OFFSET(struct block, rule_id, 16);
CHECK_OFFSET(struct block, prefix_length, 21);
CHECK_SIZE(struct block_slot, 32);
CHECK_OFFSET(struct block_slot, terms, 8);
CHECK_OFFSET(struct block_slot, hits, 24);
CHECK_SIZE(struct block_bucket, 64);
CHECK_SIZE(struct block_hash, 48);
CHECK_SIZE(struct cidr4_key, 8);
CHECK_SIZE(struct cidr6_key, 20);
CHECK_SIZE(struct first_hit, 32);
CHECK_SIZE(struct rule_set, 16);
CHECK_SIZE(struct rule_match_key, 24);
CHECK_SIZE(struct rule_bits, 8 + 8 * RULE_BITS_WORDS);
CHECK_SIZE(struct rule, 32);
CHECK_SIZE(struct rule_count, 24);
CHECK_SIZE(struct bucket_key, 24);
CHECK_SIZE(struct fragment_key, 40);
CHECK_SIZE(struct fragment, 16);
CHECK_SIZE(struct guard_event, 64);
CHECK_OFFSET(struct guard_event, source_port, 40);
CHECK_OFFSET(struct guard_event, ifindex, 48);

#endif
