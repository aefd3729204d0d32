/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who: what this kernel's own sockets tell of connections. All need the kernel's BTF; a program whose hook is
 * missing is left out, and the others stand.
 *
 * watch_handshake      tp_btf/inet_sock_set_state: which handshakes this kernel completed itself, and which
 *                      connections it closed; with the round-trip time.
 * watch_send, watch_receive
 *                      tp_btf/sock_send_length and sock_recv_length (Linux 6.3): whose process uses a
 *                      connection. They run in that process, so nothing is asked of /proc.
 * watch_receive_older  tp_btf/tcp_rcv_space_adjust: the same for older kernels, of TCP alone.
 * list_connections     iter/task_file: connections that were open before; run once.
 */
#ifndef TOLLWARD_WHO_H
#define TOLLWARD_WHO_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "flows.h"
#include "process.h"

#define AF_INET	 2
#define AF_INET6 10
/* The process and round-trip time of a connection are told at its first uses, and then at each of so many. */
#define FIRST_USES   4
#define USES_BETWEEN 32

/* The few kernel fields that are read here; their offsets come from the running kernel's BTF. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
typedef struct {
	struct net *net;
} possible_net_t;
struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};
struct inet_sock {
	__be16 inet_sport;
};
struct tcp_sock {
	__u32 srtt_us; /* times 8 */
};
struct socket {
	struct sock *sk;
};
struct file;
struct kernfs_node {
	__u64 id;
};
struct cgroup_root;
struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
	int level;
};
struct cgroup_subsys_state {
	struct cgroup *cgroup;
};
struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
};
struct task_struct {
	int tgid;
	struct task_struct *group_leader;
	char comm[PROCESS_NAME_BYTES];
	struct css_set *cgroups;
};
struct bpf_iter_meta;
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};
/* Its number depends on how the kernel was built. */
enum cgroup_subsys_id {
	memory_cgrp_id = 0,
};
#pragma clang attribute pop

/* What is remembered with a socket, and goes with it. */
struct socket_use {
	__u32 uses;
	__u32 tgid; /* who used it last, by the kernel's own number */
	struct connection connection;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_use);
} sockets SEC(".maps");

static __always_inline int is_watched(const struct sock *sk)
{
	__u32 zero = 0;
	struct config *settings = bpf_map_lookup_elem(&config, &zero);

	if (!settings)
		return 0;
	return settings->netns_inum == 0 ||
	       settings->netns_inum == BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/* The flow that arrives at this socket; 0 if it is none of TCP or connected UDP. */
static __always_inline int read_arriving(struct flow_key *arriving, const struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	__builtin_memset(arriving, 0, sizeof(*arriving));
	arriving->direction = FLOW_INGRESS;
	arriving->protocol = BPF_CORE_READ(sk, sk_protocol);
	arriving->source_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	/* Not skc_num, which is taken back before the end of a connection is told. */
	arriving->destination_port = bpf_ntohs(BPF_CORE_READ((const struct inet_sock *)sk, inet_sport));
	if (arriving->source_port == 0 || arriving->destination_port == 0)
		return 0;
	if (arriving->protocol != IPPROTO_TCP && arriving->protocol != IPPROTO_UDP)
		return 0;
	if (family == AF_INET) {
		map_ipv4(&arriving->source, BPF_CORE_READ(sk, __sk_common.skc_daddr));
		map_ipv4(&arriving->destination, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		return 1;
	}
	if (family != AF_INET6)
		return 0;
	BPF_CORE_READ_INTO(&arriving->source, sk, __sk_common.skc_v6_daddr);
	BPF_CORE_READ_INTO(&arriving->destination, sk, __sk_common.skc_v6_rcv_saddr);
	return 1;
}

static __always_inline __u64 cgroup_of(const struct task_struct *task)
{
	const struct css_set *set = BPF_CORE_READ(task, cgroups);
	const struct cgroup *unified = BPF_CORE_READ(set, dfl_cgrp);
	struct cgroup_subsys_state *memory = 0;
	const struct cgroup *old;

	if (BPF_CORE_READ(unified, level) > 0 ||
	    !bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		return BPF_CORE_READ(unified, kn, id);
	bpf_core_read(&memory, sizeof(memory),
		      (void *)&set->subsys +
			      bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id) * sizeof(memory));
	old = BPF_CORE_READ(memory, cgroup);
	if (!old || BPF_CORE_READ(old, root) == BPF_CORE_READ(unified, root))
		return BPF_CORE_READ(unified, kn, id);
	return BPF_CORE_READ(old, kn, id) | CGROUP_OF_MEMORY_HIERARCHY;
}

static __always_inline void read_process(struct connection *connection, const struct task_struct *task)
{
	__u32 zero = 0;
	struct config *settings = bpf_map_lookup_elem(&config, &zero);

	connection->process_id = process_id_in(settings ? settings->pidns_inum : 0, task);
	connection->cgroup_id = cgroup_of(task);
	BPF_CORE_READ_INTO(&connection->process_name, task, group_leader, comm);
}

static __always_inline __u32 rtt_of(const struct sock *sk, __u8 protocol)
{
	return protocol == IPPROTO_TCP ? BPF_CORE_READ((const struct tcp_sock *)sk, srtt_us) >> 3 : 0;
}

/* States of a connection whose handshake was completed and that can still carry data one way. */
static __always_inline int is_open(__u8 state)
{
	return state == BPF_TCP_ESTABLISHED || state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_FIN_WAIT2 ||
	       state == BPF_TCP_CLOSE_WAIT;
}

static __always_inline int is_loopback(const struct address *address)
{
	const __u8 *bytes = address->bytes;
	const __u32 *words = (const void *)bytes;

	if (words[0] || words[1])
		return 0;
	if (words[2] == bpf_htonl(0xffff))
		return bytes[12] == 127;
	return !words[2] && words[3] == bpf_htonl(1);
}

/*
 * Whether a socket of another namespace may say whose a connection is: not of one that this namespace's own
 * sockets know, from whichever end, and not of addresses that every namespace has for itself.
 */
static __always_inline int may_be_told_by_foreigner(const struct flow_key *arriving)
{
	const struct connection_state *known;
	struct flow_key mirrored;

	if (is_loopback(&arriving->destination) || is_loopback(&arriving->source))
		return 0;
	known = bpf_map_lookup_elem(&connections, arriving);
	if (known && !known->is_foreign)
		return 0;
	mirror(&mirrored, arriving);
	known = bpf_map_lookup_elem(&connections, &mirrored);
	return !known || known->is_foreign;
}

/* Writes what is known of an open connection to the map and to its flows. */
static __always_inline void tell(const struct sock *sk, const struct flow_key *arriving,
				 struct connection *connection, int established)
{
	struct connection_state state = {.is_foreign = !is_watched(sk)};
	struct connection_state *known;

	if (state.is_foreign && !may_be_told_by_foreigner(arriving))
		return;
	connection->rtt_us = rtt_of(sk, arriving->protocol);
	/* Only a handshake of this namespace proves a source: a container could have made up its own. */
	if (established && !state.is_foreign)
		state.established_ns = bpf_ktime_get_boot_ns();
	known = bpf_map_lookup_elem(&connections, arriving);
	if (known && !known->closed_ns && known->is_foreign == state.is_foreign) {
		if (known->established_ns)
			state.established_ns = known->established_ns;
		if (!connection->cgroup_id) {
			__u32 rtt_us = connection->rtt_us;

			*connection = known->connection;
			connection->rtt_us = rtt_us;
		}
	}
	state.connection = *connection;
	bpf_map_update_elem(&connections, arriving, &state, BPF_ANY);
	tell_flows(arriving, connection, state.established_ns ? FLOW_ESTABLISHED : 0, state.is_foreign);
}

/* What has no handshake behind it yet is told when it has; what is closed was told then. */
static __always_inline void tell_open(const struct sock *sk, const struct flow_key *arriving,
				      struct connection *connection)
{
	if (arriving->protocol != IPPROTO_TCP)
		tell(sk, arriving, connection, 0);
	else if (is_open(BPF_CORE_READ(sk, __sk_common.skc_state)))
		tell(sk, arriving, connection, 1);
}

static __always_inline void tell_closed(const struct sock *sk, const struct flow_key *arriving)
{
	struct connection_state *known = bpf_map_lookup_elem(&connections, arriving);
	int is_foreign = !is_watched(sk);
	struct connection connection;
	__u32 rtt_us;

	if (is_foreign && (!known || !known->is_foreign || !may_be_told_by_foreigner(arriving)))
		return;
	if (!known) {
		tell_flows(arriving, 0, FLOW_CLOSED, is_foreign);
		return;
	}
	rtt_us = rtt_of(sk, arriving->protocol);
	if (rtt_us)
		known->connection.rtt_us = rtt_us;
	known->closed_ns = bpf_ktime_get_boot_ns();
	connection = known->connection;
	tell_flows(arriving, &connection, FLOW_CLOSED, is_foreign);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(watch_handshake, struct sock *sk, int from, int to)
{
	struct connection connection = {};
	struct flow_key arriving;
	struct socket_use *use;

	/* connect() begins in the process that asked for it; the ports are not chosen yet. */
	if (to == BPF_TCP_SYN_SENT) {
		use = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (use)
			read_process(&use->connection, bpf_get_current_task_btf());
		return 0;
	}
	if (to != BPF_TCP_CLOSE &&
	    (to != BPF_TCP_ESTABLISHED || (from != BPF_TCP_SYN_RECV && from != BPF_TCP_SYN_SENT)))
		return 0;
	if (!read_arriving(&arriving, sk) || arriving.protocol != IPPROTO_TCP)
		return 0;
	if (to == BPF_TCP_CLOSE) {
		tell_closed(sk, &arriving);
		return 0;
	}
	use = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (use)
		connection = use->connection;
	tell(sk, &arriving, &connection, 1);
	return 0;
}

static __always_inline int watch_use(struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;
	struct flow_key arriving;
	struct socket_use *use;
	__u32 tgid;

	if (family != AF_INET && family != AF_INET6)
		return 0;
	use = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!use) {
		count(COUNTER_SOCKET_NOT_REMEMBERED);
		return 0;
	}
	tgid = bpf_get_current_pid_tgid() >> 32;
	use->uses += 1;
	if (use->tgid == tgid && use->uses > FIRST_USES && use->uses % USES_BETWEEN)
		return 0;
	if (use->tgid != tgid)
		read_process(&use->connection, bpf_get_current_task_btf());
	use->tgid = tgid;
	if (read_arriving(&arriving, sk))
		tell_open(sk, &arriving, &use->connection);
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(watch_send, struct sock *sk, int bytes)
{
	return bytes > 0 ? watch_use(sk) : 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(watch_receive, struct sock *sk, int bytes)
{
	return bytes > 0 ? watch_use(sk) : 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(watch_receive_older, struct sock *sk)
{
	return watch_use(sk);
}

SEC("iter/task_file")
int list_connections(struct bpf_iter__task_file *context)
{
	struct task_struct *task = context->task;
	struct file *file = context->file;
	struct connection connection = {};
	struct flow_key arriving;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !read_arriving(&arriving, sk))
		return 0;
	read_process(&connection, task);
	tell_open(sk, &arriving, &connection);
	return 0;
}

#endif
