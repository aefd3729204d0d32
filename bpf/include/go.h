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
#define GO_GOROUTINE(registers) (((struct user_pt_regs *)(registers))->regs[28])
#else
#define GO_ARGUMENT1(registers) ((registers)->rax)
#define GO_ARGUMENT2(registers) ((registers)->rbx)
#define GO_ARGUMENT3(registers) ((registers)->rcx)
#define GO_GOROUTINE(registers) ((registers)->r14)
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

/* What a TLS connection of Go runs over. */
struct go_binding {
	struct used_socket used;
	__u64 inner;	  /* 0: what it runs over is of another type */
	__u64 descriptor; /* 0: only what the goroutine did says so */
	enum call_binding how;
};

/*
 * Whether a connection that was tied for certain is what it was: the value that it runs over, and the socket
 * of that. The socket is compared by what no other has, so none of it can have become another's; reading all
 * of it anew takes three times as long.
 */
static __always_inline int is_as_it_was(const struct connection *known, __u64 object)
{
	struct go_tls_connection connection = {};
	struct go_descriptor descriptor = {};
	struct used_socket used = {};
	struct file *file;

	if (!known->go_inner || !known->cookie ||
	    bpf_probe_read_user(&connection, sizeof(connection), (void *)object) ||
	    connection.inner.data != known->go_inner ||
	    bpf_probe_read_user(&descriptor, sizeof(descriptor), (void *)known->go_descriptor))
		return 0;
	file = file_of_descriptor(descriptor.number);
	return file && socket_of_file(file, &used) && used.socket == known->socket &&
	       used.cookie == known->cookie;
}

/*
 * The socket of a TLS connection, and how sure that is. A wrapper could use another connection than the one
 * it holds first, so what it holds is a guess.
 */
static __always_inline void find_socket_of_go(__u64 object, __u64 tcp_read, struct go_binding *found)
{
	struct go_tls_connection connection = {};
	struct go_descriptor descriptor = {};
	enum call_binding how = BINDING_CERTAIN;
	__u64 at = 0, state = GO_DESCRIPTOR_CLOSED;

	if (bpf_probe_read_user(&connection, sizeof(connection), (void *)object))
		return;
	if (!is_go_tcp(&connection.inner, tcp_read)) {
		how = BINDING_TOKEN;
		if (bpf_probe_read_user(&connection.inner, sizeof(connection.inner),
					(void *)connection.inner.data) ||
		    !is_go_tcp(&connection.inner, tcp_read))
			return;
	}
	if (bpf_probe_read_user(&at, sizeof(at), (void *)connection.inner.data) ||
	    bpf_probe_read_user(&descriptor, sizeof(descriptor), (void *)at) ||
	    !socket_of_descriptor(descriptor.number, &found->used))
		return;
	/* Closing is noted there before the number is free for another socket. */
	if (bpf_probe_read_user(&state, sizeof(state), (void *)at) || state & GO_DESCRIPTOR_CLOSED)
		return;
	found->used.side = connection.is_client ? SIDE_CLIENT : SIDE_SERVER;
	if (how == BINDING_CERTAIN)
		found->inner = connection.inner.data;
	found->descriptor = at;
	found->how = how;
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

/*
 * A goroutine of a thread that is marked read a socket: what it deciphers next may be of that one. Go keeps
 * the goroutine in a register, also where it enters the kernel.
 */
static __always_inline void note_goroutine(const struct pt_regs *regs, const struct used_socket *used)
{
	struct goroutine_key key = {.goroutine = GO_GOROUTINE(regs), .pid = current_pid()};
	struct goroutine *known = bpf_map_lookup_elem(&goroutines, &key);
	struct goroutine fresh = {.token = *used};

	if (!known) {
		bpf_map_update_elem(&goroutines, &key, &fresh, BPF_ANY);
		return;
	}
	known->is_ambiguous |= known->token.socket && known->token.socket != used->socket;
	known->token = *used;
}

/* Once, as of a thread; marks the thread, so that its goroutines are noted from now on. */
static __always_inline void take_token_of_goroutine(const struct pt_regs *regs, struct thread *thread,
						    struct go_binding *found)
{
	struct goroutine_key key = {.goroutine = GO_GOROUTINE(regs), .pid = current_pid()};
	struct goroutine *known;

	if (thread)
		thread->is_go = 1;
	known = bpf_map_lookup_elem(&goroutines, &key);
	if (!known)
		return;
	if (known->token.socket && !known->is_ambiguous) {
		found->used = known->token;
		found->how = BINDING_TOKEN;
	}
	known->token.socket = 0;
	known->is_ambiguous = 0;
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

/* Ties a connection to what it runs over now; if it was something else, another one comes in its place. */
static __always_inline struct connection *tie_go(__u64 object, const struct go_binding *found)
{
	struct connection *connection = tls_connection(object, SOURCE_GO);

	if (!connection || found->how == BINDING_NONE)
		return connection;
	if (found->descriptor && is_of_another(connection, &found->used)) {
		end_tls_connection(object);
		connection = tls_connection(object, SOURCE_GO);
		if (!connection)
			return 0;
	}
	tie(connection, &found->used, found->how);
	connection->go_inner = found->inner;
	connection->go_descriptor = found->descriptor;
	return connection;
}

#endif
