/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Who: what the kernel's own TCP knows of connections. watch_handshake (tp_btf/inet_sock_set_state): which
 * connections this kernel established itself. Needs the kernel's BTF; without it the programs here are left
 * out and no flow carries FLOW_ESTABLISHED.
 */
#ifndef TOLLWARD_WHO_H
#define TOLLWARD_WHO_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "flows.h"

#define AF_INET	 2
#define AF_INET6 10

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
	__u16 skc_num;
	unsigned short skc_family;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};
#pragma clang attribute pop

static __always_inline int is_watched(const struct sock *sk)
{
	__u32 zero = 0;
	struct config *settings = bpf_map_lookup_elem(&config, &zero);

	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP || !settings)
		return 0;
	return settings->netns_inum == 0 ||
	       settings->netns_inum == BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(watch_handshake, const struct sock *sk, int from, int to)
{
	struct flow_key arriving = {.protocol = IPPROTO_TCP, .direction = FLOW_INGRESS};
	int completes = to == BPF_TCP_ESTABLISHED && (from == BPF_TCP_SYN_RECV || from == BPF_TCP_SYN_SENT);
	__u16 family;

	if ((!completes && to != BPF_TCP_CLOSE) || !is_watched(sk))
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family == AF_INET) {
		map_ipv4(&arriving.source, BPF_CORE_READ(sk, __sk_common.skc_daddr));
		map_ipv4(&arriving.destination, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
	} else if (family == AF_INET6) {
		BPF_CORE_READ_INTO(&arriving.source, sk, __sk_common.skc_v6_daddr);
		BPF_CORE_READ_INTO(&arriving.destination, sk, __sk_common.skc_v6_rcv_saddr);
	} else {
		return 0;
	}
	arriving.source_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	arriving.destination_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (completes)
		mark_established(&arriving, bpf_ktime_get_boot_ns());
	else
		bpf_map_delete_elem(&established, &arriving);
	return 0;
}

#endif
