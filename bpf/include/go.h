/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Calls inside crypto/tls of Go. Its stacks move and its goroutines change threads, so nothing is remembered
 * between two probes: each finds the connection and its socket by itself. The socket is certain: it is read
 * from the connection, whose type is compared, and it was not closed by then.
 *
 * The rest of a cookie: 16 bits, where (*Conn).Read keeps its first argument, in bytes above the stack
 * pointer; 32 bits, how far (*net.TCPConn).Read is from the probe.
 */
#ifndef TOLLWARD_GO_H
#define TOLLWARD_GO_H

#include "binding.h"

/* The convention of Go 1.17 (x86-64) and 1.18 (arm64). */
#if defined(__TARGET_ARCH_arm64)
#define GO_ARGUMENT1(registers) (((struct user_pt_regs *)(registers))->regs[0])
#define GO_ARGUMENT2(registers) (((struct user_pt_regs *)(registers))->regs[1])
#define GO_ARGUMENT3(registers) (((struct user_pt_regs *)(registers))->regs[2])
#else
#define GO_ARGUMENT1(registers) ((registers)->rax)
#define GO_ARGUMENT2(registers) ((registers)->rbx)
#define GO_ARGUMENT3(registers) ((registers)->rcx)
#endif

/* In the table of a type as net.Conn: the third of its methods by name, Read. */
#define GO_TABLE_READ 40
/* Of what a connection may be wrapped into, if the connection is what it holds first: looked into so deep. */
#define GO_WRAPPERS_MAX	     2
#define GO_DESCRIPTOR_CLOSED 1
#define GO_BYTES_MAX	     0xffffffffULL

/* A value of the type net.Conn. */
struct go_interface {
	__u64 table;
	__u64 data;
};

/* The first members of crypto/tls.Conn. */
struct go_tls_connection {
	struct go_interface inner;
	__u8 is_client;
	__u8 zero[7];
};

/* The first members of internal/poll.FD, which are those of the net.netFD that has it. */
struct go_descriptor {
	__u64 state;
	__u64 semaphores;
	__u64 number;
};

/* bytes.Reader. */
struct go_reader {
	__u64 data;
	__u64 length;
	__u64 capacity;
	__u64 at;
};

static __always_inline int is_go_tcp(const struct go_interface *value, __u64 tcp_read)
{
	__u64 method = 0;

	return !bpf_probe_read_user(&method, sizeof(method), (void *)(value->table + GO_TABLE_READ)) &&
	       method == tcp_read;
}

/*
 * The socket of a TLS connection, and how sure that is. A wrapper could use another connection than the one
 * it holds first, so what it holds is a guess.
 */
static __always_inline enum call_binding socket_of_go(__u64 object, __u64 tcp_read, struct used_socket *used)
{
	enum call_binding binding = BINDING_CERTAIN;
	struct go_tls_connection connection = {};
	struct go_descriptor descriptor = {};
	__u64 at = 0, state = GO_DESCRIPTOR_CLOSED;

	if (bpf_probe_read_user(&connection, sizeof(connection), (void *)object))
		return BINDING_NONE;
	for (int depth = 0; depth < GO_WRAPPERS_MAX && !is_go_tcp(&connection.inner, tcp_read); depth++) {
		binding = BINDING_TOKEN;
		if (bpf_probe_read_user(&connection.inner, sizeof(connection.inner),
					(void *)connection.inner.data))
			return BINDING_NONE;
	}
	if (binding != BINDING_CERTAIN && !is_go_tcp(&connection.inner, tcp_read))
		return BINDING_NONE;
	if (bpf_probe_read_user(&at, sizeof(at), (void *)connection.inner.data) ||
	    bpf_probe_read_user(&descriptor, sizeof(descriptor), (void *)at) ||
	    !socket_of_descriptor(descriptor.number, used))
		return BINDING_NONE;
	/* Closing is noted there before the number is free for another socket. */
	if (bpf_probe_read_user(&state, sizeof(state), (void *)at) || state & GO_DESCRIPTOR_CLOSED)
		return BINDING_NONE;
	used->side = connection.is_client ? SIDE_CLIENT : SIDE_SERVER;
	return binding;
}

/*
 * Memory of one that nobody closed may have come to be another's. Only a socket that is older than the
 * programs may have no cookie at first.
 */
static __always_inline int is_of_another(const struct connection *known, const struct used_socket *used)
{
	if (!known->socket)
		return 0;
	return known->socket != used->socket || (known->cookie && known->cookie != used->cookie);
}

/* What a call moves. */
static __always_inline int find_go_transfer(struct pt_regs *regs, enum probe_kind kind,
					    struct transfer *transfer)
{
	__u64 length = GO_ARGUMENT3(regs);
	struct go_reader reader = {};

	transfer->direction = kind == PROBE_GO_WRITE ? CALL_SENT : CALL_RECEIVED;
	transfer->buffer = GO_ARGUMENT2(regs);
	if (kind == PROBE_GO_READER) {
		if (bpf_probe_read_user(&reader, sizeof(reader), (void *)GO_ARGUMENT1(regs)))
			count_calls(CALL_UNREADABLE, 1);
		if (reader.at >= reader.length)
			return 0;
		transfer->buffer = reader.data + reader.at;
		if (length > reader.length - reader.at)
			length = reader.length - reader.at;
	}
	/* A record has room for no more. */
	if (length > GO_BYTES_MAX) {
		count_calls(CALL_UNREADABLE, 1);
		length = GO_BYTES_MAX;
	}
	transfer->bytes = length;
	return length > 0;
}

#endif
