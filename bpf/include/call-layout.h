/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What calls.bpf.c and user space share; as layout.h says. libs/libbpf/src/call-layout.ts reads and writes
 * the same bytes. Nothing of this is pinned: probes without a reader would only cost, so they end with the
 * process that reads them.
 */
#ifndef TOLLWARD_CALL_LAYOUT_H
#define TOLLWARD_CALL_LAYOUT_H

#include "layout.h"

#define COMM_BYTES	 16
#define CLEAR_PORT_WORDS 1024 /* a bit for each of 65,536 ports */
/* One record's payload: room is reserved in one of these sizes, as the kernel wants a constant. */
#define PAYLOAD_SMALL  512
#define PAYLOAD_MIDDLE 4096
#define PAYLOAD_LARGE  16384

enum call_direction {
	CALL_SENT = 0,
	CALL_RECEIVED = 1,
	CALL_DIRECTIONS = 2,
};

/* How a connection was tied to its socket; the greater, the surer. */
enum call_binding {
	BINDING_NONE = 0,
	BINDING_TOKEN = 1,
	BINDING_CERTAIN = 2,
};

enum call_side {
	SIDE_UNKNOWN = 0,
	SIDE_SERVER = 1,
	SIDE_CLIENT = 2,
};

/* What the plaintext came from. */
enum call_source {
	SOURCE_CLEAR = 0,
	SOURCE_OPENSSL = 1,
	SOURCE_NODE = 2,
	SOURCE_BORINGSSL = 3,
	SOURCE_GNUTLS = 4,
	SOURCE_GO = 5,
};

/* What a probed function is: its arguments and result. The low byte of a probe's cookie; the next is enum
 * call_source. */
enum probe_kind {
	PROBE_READ = 1,	     /* int (ssl, buffer, int length): bytes read, else not positive */
	PROBE_READ_EX = 2,   /* int (ssl, buffer, size_t length, size_t *read): positive if it read */
	PROBE_WRITE = 3,     /* as PROBE_READ */
	PROBE_WRITE_EX = 4,  /* as PROBE_READ_EX */
	PROBE_SET_FD = 5,    /* (ssl, int fd) */
	PROBE_HANDSHAKE = 6, /* (ssl) */
	PROBE_FREE = 7,	     /* (ssl) */
	/* Of Go; include/go.h says what the rest of the cookie is. */
	PROBE_GO_WRITE = 8,   /* at the entry of (*Conn).Write */
	PROBE_GO_COPY = 9,    /* inside (*Conn).Read: memmove(to, from, length) is called */
	PROBE_GO_READER = 10, /* inside (*Conn).Read: (*bytes.Reader).Read(reader, to, length) is called */
	PROBE_GO_CLOSE = 11,  /* in (*Conn).Close */
};

/* Bits of call_chunk.flags. */
enum chunk_flag {
	CHUNK_CLOSED = 1,    /* the connection ended; no bytes */
	CHUNK_ADDRESSED = 2, /* the addresses are known */
};

/* The only element of the map "call_config". All zero (a fresh map) means: capture nothing. */
struct call_config {
	__u32 enabled;
	__u32 payload_bytes_max; /* of one read or write, at most PAYLOAD_LARGE */
	/* Of the payload of one cgroup: what a byte costs, and how much time it may be ahead. 0: no bound. */
	__u64 picoseconds_per_byte;
	__u64 burst_ns;
	__u32 sample_one_in; /* connections, by hash; 0 and 1: all */
	__u32 own_pid;	     /* never captured: the reader itself */
	__u32 pidns_inum;    /* of /proc/self/ns/pid, in whose numbers processes are told; 0: the first */
	__u32 zero;
};

/* The only element of the map "clear_ports": connections with such a port at either end are captured in the
 * clear. */
struct clear_ports {
	__u64 words[CLEAR_PORT_WORDS];
};

/* Record of the ring "calls": what one read or write of a connection carried, the payload behind it. */
struct call_chunk {
	__u64 connection; /* the same for as long as the connection lives, and for no other since the programs
			     were loaded */
	__u64 at_ns;
	__u64 cgroup_id;
	__u64 skipped;	/* bytes of this direction between the end of its last record and this one that no
			   record holds */
	__u32 total;	/* bytes of this read or write */
	__u32 captured; /* the first of them, which follow */
	__u32 pid;	/* the process, not the thread; as the initial namespace counts */
	__u16 local_port;
	__u16 peer_port;
	struct address local;
	struct address peer;
	__u8 comm[COMM_BYTES];
	__u8 direction;
	__u8 binding;
	__u8 side;
	__u8 source;
	__u32 flags;
};

/* Index into the per-CPU map "call_counters". */
enum call_counter {
	CALL_CHUNKS = 0,     /* records written */
	CALL_BYTES = 1,	     /* payload in them */
	CALL_TRUNCATED = 2,  /* bytes beyond payload_bytes_max */
	CALL_RING_FULL = 3,  /* records that found no room */
	CALL_BUDGET = 4,     /* records beyond the cgroup's budget */
	CALL_UNREADABLE = 5, /* records whose bytes were not in memory, or passed in a way that is not read */
	CALL_UNSAMPLED = 6,  /* connections left out by sampling */
	CALL_CONNECTIONS = 7,	/* connections first seen */
	CALL_TABLE_FULL = 8,	/* connections or calls for which a map had no room */
	CALL_BOUND_CERTAIN = 9, /* reads and writes by how they were tied to a socket */
	CALL_BOUND_TOKEN = 10,
	CALL_BOUND_NONE = 11,
	CALL_REBOUND = 12, /* a connection was tied to another socket than before */
	CALL_COUNTER_SLOTS = 32,
};

CHECK_SIZE(struct call_config, 40);
CHECK_SIZE(struct clear_ports, 8192);
CHECK_SIZE(struct call_chunk, 104);
CHECK_OFFSET(struct call_chunk, local, 48);
CHECK_OFFSET(struct call_chunk, direction, 96);

#endif
