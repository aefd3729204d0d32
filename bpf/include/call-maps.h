/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Maps of calls.bpf.c, and the few kernel structures it reads; offsets come from the running kernel's BTF. */
#ifndef TOLLWARD_CALL_MAPS_H
#define TOLLWARD_CALL_MAPS_H

#include <linux/bpf.h>
#include <linux/in6.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "call-layout.h"

/* 176 bytes an entry, as they come. Least recently used ones go first: a process that was killed frees
 * nothing.
 */
#define TLS_CONNECTIONS_MAX 65536
#define BUDGETS_MAX	    4096
/* Goroutines that read a socket, of programs whose connections are of a type that is not known. */
#define GOROUTINES_MAX 8192
/* 80,000 requests of usual size, or 500 payloads of 16 KiB, between two reads. */
#define CALLS_BYTES (8 * 1024 * 1024)
/* A TLS call inside another's: TLS in TLS, as clients of a TLS proxy do. Deeper ones are left out. */
#define CALL_DEPTH_MAX 2

#define AF_INET	 2
#define AF_INET6 10

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
typedef struct {
	__s64 counter;
} atomic64_t;
struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};
struct socket {
	struct sock *sk;
};
struct inode {
	unsigned short i_mode;
};
struct file {
	struct inode *f_inode;
	void *private_data;
};
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};
struct files_struct {
	struct fdtable *fdt;
};
struct task_struct {
	struct task_struct *group_leader;
	__u64 start_time;
	struct files_struct *files;
};
#pragma clang attribute pop

/* One connection: of TLS by its object in the process, in the clear by its socket. */
struct connection {
	__u64 id;
	__u64 socket; /* the kernel's address of it, 0: not tied */
	__u64 cookie; /* the socket's; another socket may come to the same address */
	__u64 process_started;
	__u64 skipped[CALL_DIRECTIONS];
	__u64 cgroup_id;
	/* Of Go: what it is tied by, the values of two pointers; 0: by something else. */
	__u64 go_inner;
	__u64 go_descriptor;
	struct address local;
	struct address peer;
	__u16 local_port;
	__u16 peer_port;
	__u32 pid;
	enum call_binding binding;
	__u8 side;
	__u8 source;
	__u8 is_addressed;
	__u8 is_unsampled;
	__u8 is_tls;   /* of a socket: what it carries is enciphered */
	__u8 is_text;  /* of a socket: what it carried first was not TLS, so nobody deciphers it */
	__u8 is_whole; /* of a socket: seen since its handshake */
	__u8 is_new;   /* of a socket: it carried nothing yet */
	__u8 odd_records;
	__u8 is_http2;
	__u8 zero[2];
};

/* A TLS connection is an object at an address of a process, as SSL * is. */
struct tls_key {
	__u64 object;
	__u32 pid;
	__u32 zero;
};

/* A socket that was used, and what is known of it there. */
struct used_socket {
	__u64 socket;
	__u64 cookie;
	enum call_side side;
	__u32 zero;
};

/* A TLS call that has not returned. */
struct frame {
	__u64 object;
	__u64 buffer;
	__u64 length_out;	   /* where *_ex put the length; 0: the result is the length */
	__u64 stack;		   /* the stack pointer at entry: the return address lies there */
	struct used_socket nested; /* the last one used inside the call */
	struct used_socket token;  /* the one read just before */
	enum probe_kind kind;
	enum call_source source;
};

struct thread {
	struct frame frames[CALL_DEPTH_MAX];
	struct used_socket token;
	__u32 depth;
	__u32 is_ambiguous; /* several sockets were read since a call took the token */
	__u32 is_go;	    /* goroutines ran on it that read connections of a type that is not known */
	__u32 zero;
};

/* A goroutine of a process: it may go on in another thread. */
struct goroutine_key {
	__u64 goroutine;
	__u32 pid;
	__u32 zero;
};

/* As of a thread. */
struct goroutine {
	struct used_socket token;
	__u32 is_ambiguous;
	__u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct call_config);
} call_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clear_ports);
} clear_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CALL_COUNTER_SLOTS);
	__type(key, __u32); /* enum call_counter */
	__type(value, __u64);
} call_counters SEC(".maps");

/* The last connection number of each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} connection_ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, CALLS_BYTES);
} calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TLS_CONNECTIONS_MAX);
	__type(key, struct tls_key);
	__type(value, struct connection);
} tls_connections SEC(".maps");

/* Ends with the socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct connection);
} sockets SEC(".maps");

/* Ends with the thread. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, GOROUTINES_MAX);
	__type(key, struct goroutine_key);
	__type(value, struct goroutine);
} goroutines SEC(".maps");

/* By cgroup: until when what it sent is paid for. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, BUDGETS_MAX);
	__type(key, __u64);
	__type(value, __u64);
} budgets SEC(".maps");

/* Atomic, as a program at a probe can be interrupted by another one of its CPU. */
static __noinline void count_calls(enum call_counter counter, __u64 by)
{
	__u32 key = counter;
	__u64 *value = bpf_map_lookup_elem(&call_counters, &key);

	if (value)
		__sync_fetch_and_add(value, by);
}

#endif
