// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What processes read and write on their connections, in the clear: inside TLS at the calls of the TLS
 * library, else at the socket. Nothing is changed and nothing is held up: what cannot be read is left out and
 * counted.
 *
 * tls_enter, tls_leave   uprobe and uretprobe, on functions of a TLS library; the cookie says which.
 * go_call                uprobe, in crypto/tls of Go programs; likewise.
 * socket_sent            tp_btf/sock_send_length, in the process, after the kernel took the bytes
 * (Linux 6.3). socket_received        tp_btf/sock_recv_length, likewise. socket_read
 * tp_btf/tcp_rcv_space_adjust, for tokens only, where the two above are missing. socket_changed
 * tp_btf/inet_sock_set_state: who opened a connection, and its end.
 *
 * A socket's bytes are where the system call of the thread says. No tracepoint of system calls is used: those
 * would slow down every system call of the node.
 */
#include <asm/ptrace.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "binding.h"
#include "capture.h"
#include "go.h"

#define MSG_PEEK  0x02
#define MSG_TRUNC 0x20

#define CREATE BPF_LOCAL_STORAGE_GET_F_CREATE
/* Segments of one call that are read; the others are skipped. */
#define SEGMENTS_MAX 32
/* Reads and writes that did not begin as TLS does, of a connection whose beginning was not seen. */
#define ODD_RECORDS_OF_TEXT 3
/* Content type 20 to 23, major version 3. */
#define TLS_RECORD_FIRST 0x14
#define TLS_RECORD_LAST	 0x17
#define TLS_HANDSHAKE	 0x16
#define CLIENT_HELLO	 1
#define SERVER_HELLO	 2
#define TLS_MAJOR	 3
#define TLS_MINOR_MAX	 4

/* Those of x86-64; calls of 32-bit processes have other numbers, and are not read. */
enum system_call {
	SYS_READ = 0,
	SYS_WRITE = 1,
	SYS_READV = 19,
	SYS_WRITEV = 20,
	SYS_SENDTO = 44,
	SYS_RECVFROM = 45,
	SYS_SENDMSG = 46,
	SYS_RECVMSG = 47,
};

struct segment {
	__u64 base;
	__u64 length;
};

struct user_msghdr {
	__u64 name;
	__u64 name_length;
	__u64 segments;
	__u64 segment_count;
};

static __always_inline struct call_config *active_settings(void)
{
	struct call_config *settings = settings_of_calls();

	if (!settings || !settings->enabled || settings->own_pid == told_pid(settings))
		return 0;
	return settings;
}

static __always_inline struct thread *current_thread(__u64 flags)
{
	return bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0, flags);
}

/* A call that did not return by its probe, as after longjmp, lies no higher on the stack than a new one. */
static __always_inline void drop_abandoned(struct thread *thread, __u64 stack)
{
	if (thread->depth > 1 && thread->frames[1].stack <= stack)
		thread->depth = 1;
	if (thread->depth > 0 && thread->frames[0].stack <= stack)
		thread->depth = 0;
}

static __always_inline struct frame *top_frame(struct thread *thread)
{
	if (thread->depth == 0)
		return 0;
	return thread->depth == 1 ? &thread->frames[0] : &thread->frames[1];
}

/* Once: the next call may decipher what was read long before. Nothing, if the thread read several sockets. */
static __always_inline void take_token(struct thread *thread, struct used_socket *token)
{
	*token = thread->token;
	if (thread->is_ambiguous)
		token->socket = 0;
	thread->token.socket = 0;
	thread->is_ambiguous = 0;
}

static __always_inline int is_read(enum probe_kind kind)
{
	return kind == PROBE_READ || kind == PROBE_READ_EX;
}

static __always_inline void enter_transfer(struct pt_regs *regs, enum probe_kind kind,
					   enum call_source source)
{
	struct thread *thread = current_thread(CREATE);
	__u64 stack = PT_REGS_SP(regs);
	struct frame *frame;

	if (!thread) {
		count_calls(CALL_TABLE_FULL, 1);
		return;
	}
	frame = top_frame(thread);
	/* The same library under two identities has two probes on one instruction. */
	if (frame && frame->stack == stack && frame->object == PT_REGS_PARM1(regs))
		return;
	drop_abandoned(thread, stack);
	if (thread->depth >= CALL_DEPTH_MAX) {
		count_calls(CALL_TABLE_FULL, 1);
		return;
	}
	frame = thread->depth == 0 ? &thread->frames[0] : &thread->frames[1];
	thread->depth++;
	__builtin_memset(frame, 0, sizeof(*frame));
	frame->object = PT_REGS_PARM1(regs);
	frame->buffer = PT_REGS_PARM2(regs);
	if (kind == PROBE_READ_EX || kind == PROBE_WRITE_EX)
		frame->length_out = PT_REGS_PARM4(regs);
	frame->stack = stack;
	frame->source = source;
	frame->kind = kind;
	if (is_read(kind))
		take_token(thread, &frame->token);
}

/* A handshake deciphers too, and often the answer to it is written before anything else is read. */
static __always_inline void enter_handshake(__u64 object, enum call_source source)
{
	struct thread *thread = current_thread(CREATE);
	struct connection *connection;
	struct used_socket token;

	if (!thread || !thread->token.socket)
		return;
	take_token(thread, &token);
	if (!token.socket)
		return;
	connection = tls_connection(object, source);
	if (connection)
		tie(connection, &token, BINDING_TOKEN);
}

static __always_inline void enter_set_fd(__u64 object, __u32 descriptor, enum call_source source)
{
	struct connection *connection = tls_connection(object, source);
	struct used_socket used = {};

	if (connection && socket_of_descriptor(descriptor, &used))
		tie(connection, &used, BINDING_CERTAIN);
}

SEC("uprobe")
int tls_enter(struct pt_regs *regs)
{
	__u64 cookie = bpf_get_attach_cookie(regs);
	enum probe_kind kind = cookie & 0xff;
	enum call_source source = cookie >> 8 & 0xff;
	__u64 object = PT_REGS_PARM1(regs);

	if (!active_settings() || object == 0)
		return 0;
	if (kind == PROBE_SET_FD)
		enter_set_fd(object, PT_REGS_PARM2(regs), source);
	else if (kind == PROBE_HANDSHAKE)
		enter_handshake(object, source);
	else if (kind == PROBE_FREE)
		end_tls_connection(object);
	else
		enter_transfer(regs, kind, source);
	return 0;
}

/* Bytes that a call moved, from its result; 0: none. */
static __always_inline __u64 transferred(const struct frame *frame, struct pt_regs *regs)
{
	int result = PT_REGS_RC(regs);
	__u64 length = 0;

	if (result <= 0)
		return 0;
	if (!frame->length_out)
		return result;
	if (bpf_probe_read_user(&length, sizeof(length), (void *)frame->length_out))
		count_calls(CALL_UNREADABLE, 1);
	return length;
}

static __always_inline void tie_by_call(struct connection *connection, const struct frame *frame, __u64 bytes)
{
	if (frame->nested.socket && (bytes > 0 || connection->binding == BINDING_NONE))
		tie(connection, &frame->nested, BINDING_CERTAIN);
	else if (frame->token.socket && (bytes > 0 || connection->binding == BINDING_NONE))
		tie(connection, &frame->token, BINDING_TOKEN);
}

SEC("uretprobe")
int tls_leave(struct pt_regs *regs)
{
	struct thread *thread;
	struct connection *connection;
	struct transfer transfer;
	struct frame *frame;

	/* Whether anything is read was asked at the entry: without, there is no frame. */
	thread = current_thread(0);
	if (!thread)
		return 0;
	frame = top_frame(thread);
	/* The return address was taken off the stack. */
	if (!frame || frame->stack + sizeof(__u64) != PT_REGS_SP(regs))
		return 0;
	thread->depth--;
	if (thread->depth == 1 && frame->nested.socket)
		thread->frames[0].nested = frame->nested;
	transfer.bytes = transferred(frame, regs);
	if (transfer.bytes == 0 && !frame->nested.socket && !frame->token.socket)
		return 0;
	connection = tls_connection(frame->object, frame->source);
	if (!connection)
		return 0;
	tie_by_call(connection, frame, transfer.bytes);
	/* A callback of the handshake may write before the read that completed it returns. */
	if (connection->binding == BINDING_NONE && thread->depth == 1 &&
	    thread->frames[0].object == frame->object)
		tie_by_call(connection, &thread->frames[0], 0);
	if (transfer.bytes == 0 || connection->is_unsampled)
		return 0;
	count_calls(CALL_BOUND_NONE - connection->binding, 1);
	transfer.buffer = frame->buffer;
	transfer.direction = is_read(frame->kind) ? CALL_RECEIVED : CALL_SENT;
	capture(connection, &transfer);
	return 0;
}

static __always_inline struct connection *connection_of_go(struct pt_regs *regs, __u64 object, __u64 cookie)
{
	struct tls_key key = {.object = object, .pid = current_pid()};
	struct connection *known = bpf_map_lookup_elem(&tls_connections, &key);
	struct go_binding found = {};

	if (known && is_as_it_was(known, object))
		return known;
	find_socket_of_go(object, PT_REGS_IP(regs) + (__s32)(cookie >> 32), &found);
	/* What is certain stays so when its socket was closed. */
	if (found.how == BINDING_NONE && (cookie & 0xff) != PROBE_GO_WRITE &&
	    !(known && known->binding == BINDING_CERTAIN))
		take_token_of_goroutine(regs, current_thread(CREATE), &found);
	return tie_go(object, &found);
}

SEC("uprobe")
int go_call(struct pt_regs *regs)
{
	__u64 cookie = bpf_get_attach_cookie(regs);
	enum probe_kind kind = cookie & 0xff;
	__u64 object = GO_ARGUMENT1(regs);
	struct connection *connection;
	struct transfer transfer = {};

	if (!active_settings())
		return 0;
	if (kind == PROBE_GO_CLOSE) {
		end_tls_connection(object);
		return 0;
	}
	if (!find_go_transfer(regs, kind, &transfer))
		return 0;
	if (kind != PROBE_GO_WRITE &&
	    bpf_probe_read_user(&object, sizeof(object),
				(void *)(PT_REGS_SP(regs) + (cookie >> 16 & 0xffff)))) {
		count_calls(CALL_UNREADABLE, 1);
		return 0;
	}
	connection = connection_of_go(regs, object, cookie);
	if (!connection || connection->is_unsampled)
		return 0;
	count_calls(CALL_BOUND_NONE - connection->binding, 1);
	capture(connection, &transfer);
	return 0;
}

static __always_inline int is_tcp(const struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	return (family == AF_INET || family == AF_INET6) && sk->sk_protocol == IPPROTO_TCP;
}

static __always_inline int has_port(const struct clear_ports *ports, __u16 port)
{
	return ports->words[port >> 6 & (CLEAR_PORT_WORDS - 1)] >> (port & 63) & 1;
}

static __always_inline int is_clear(const struct sock *sk)
{
	__u32 zero = 0;
	struct clear_ports *ports = bpf_map_lookup_elem(&clear_ports, &zero);

	return ports && (has_port(ports, sk->__sk_common.skc_num) ||
			 has_port(ports, __builtin_bswap16(sk->__sk_common.skc_dport)));
}

/* Where the current system call has its bytes: one buffer, or segments. All zero: nobody knows. */
struct place {
	__u64 buffer;
	__u64 segments;
	__u64 segment_count;
};

static __always_inline void find_place(struct place *place, int flags)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	__u64 number = regs->orig_rax, second = regs->rsi, third = regs->rdx;
	struct user_msghdr message = {};

	KEEP(second);
	KEEP(third);
	/* The bytes were thrown away. */
	if (flags & MSG_TRUNC)
		return;
	switch (number) {
	case SYS_READ:
	case SYS_WRITE:
	case SYS_SENDTO:
	case SYS_RECVFROM:
		place->buffer = second;
		break;
	case SYS_READV:
	case SYS_WRITEV:
		place->segments = second;
		place->segment_count = third;
		break;
	case SYS_SENDMSG:
	case SYS_RECVMSG:
		if (bpf_probe_read_user(&message, sizeof(message), (void *)second))
			break;
		place->segments = message.segments;
		place->segment_count = message.segment_count;
		break;
	}
}

/* Whether the bytes begin as a record of TLS does; `hello`: as the one that opens a handshake, as bytes of
 * text hardly do. */
static __always_inline int begins_as_tls(const struct place *place, int hello)
{
	__u64 buffer = place->buffer;
	__u8 head[6] = {};

	if (!buffer && place->segments &&
	    bpf_probe_read_user(&buffer, sizeof(buffer), (void *)place->segments))
		return 0;
	if (bpf_probe_read_user(head, sizeof(head), (void *)buffer))
		return 0;
	if (head[0] < TLS_RECORD_FIRST || head[0] > TLS_RECORD_LAST || head[1] != TLS_MAJOR ||
	    head[2] > TLS_MINOR_MAX)
		return 0;
	return !hello || (head[0] == TLS_HANDSHAKE && (head[5] == CLIENT_HELLO || head[5] == SERVER_HELLO));
}

/*
 * What a socket carries is told by its first bytes, if they were seen; else text is what does not begin as
 * TLS several times. Text may be followed by TLS, as after STARTTLS or CONNECT; TLS is never followed by
 * text.
 */
static __always_inline void classify(struct connection *socket, const struct place *place)
{
	if (begins_as_tls(place, socket->is_text)) {
		socket->is_tls = 1;
		socket->is_text = 0;
	} else if (socket->is_whole || socket->odd_records >= ODD_RECORDS_OF_TEXT) {
		socket->is_text = 1;
	} else {
		socket->odd_records++;
	}
}

static __always_inline void capture_clear(struct connection *connection, const struct place *place,
					  __u64 bytes, enum call_direction direction)
{
	struct transfer transfer = {.buffer = place->buffer, .bytes = bytes, .direction = direction};
	struct segment segment;

	if (!place->segments) {
		capture(connection, &transfer);
		return;
	}
	for (__u64 index = 0; index < SEGMENTS_MAX && index < place->segment_count && bytes > 0; index++) {
		if (bpf_probe_read_user(&segment, sizeof(segment),
					(void *)(place->segments + index * sizeof(segment))))
			break;
		if (segment.length == 0)
			continue;
		transfer.buffer = segment.base;
		transfer.bytes = segment.length < bytes ? segment.length : bytes;
		bytes -= transfer.bytes;
		capture(connection, &transfer);
	}
	if (bytes > 0) {
		count_calls(CALL_UNREADABLE, 1);
		__sync_fetch_and_add(&connection->skipped[direction], bytes);
	}
}

static __always_inline void note_socket(struct thread *thread, const struct sock *sk, __u64 cookie,
					const struct connection *socket, enum call_direction direction)
{
	struct used_socket used = {.socket = (__u64)sk, .cookie = cookie, .side = socket ? socket->side : 0};
	struct frame *frame = top_frame(thread);

	if (thread->is_go && direction == CALL_RECEIVED && !(socket && socket->is_text))
		note_goroutine((struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf()), &used);
	if (frame) {
		frame->nested = used;
	} else if (direction == CALL_RECEIVED && !(socket && socket->is_text)) {
		thread->is_ambiguous |= thread->token.socket && thread->token.socket != used.socket;
		thread->token = used;
	}
}

static __always_inline int use_socket(struct sock *sk, int bytes, int flags, enum call_direction direction)
{
	struct connection *socket;
	struct place place = {};
	struct thread *thread;
	int clear;

	if (bytes <= 0 || flags & MSG_PEEK || !is_tcp(sk))
		return 0;
	socket = bpf_sk_storage_get(&sockets, sk, 0, 0);
	thread = current_thread(0);
	clear = !(socket && socket->is_tls) && is_clear(sk);
	if ((!clear && !thread && !(socket && socket->is_new)) || !active_settings())
		return 0;
	if (!socket)
		socket = bpf_sk_storage_get(&sockets, sk, 0, CREATE);
	if (socket && !socket->is_tls) {
		find_place(&place, flags);
		classify(socket, &place);
		socket->is_new = 0;
	}
	if (thread)
		note_socket(thread, sk, bpf_get_socket_cookie(sk), socket, direction);
	if (!clear || !socket || socket->is_tls)
		return 0;
	if (!socket->id) {
		open_connection(socket, SOURCE_CLEAR);
		socket->is_addressed = read_addresses(socket, sk, bpf_get_socket_cookie(sk));
		socket->binding = BINDING_CERTAIN;
	}
	if (!socket->is_unsampled)
		capture_clear(socket, &place, bytes, direction);
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(socket_sent, struct sock *sk, int result, int flags)
{
	return use_socket(sk, result, flags, CALL_SENT);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(socket_received, struct sock *sk, int result, int flags)
{
	return use_socket(sk, result, flags, CALL_RECEIVED);
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(socket_read, struct sock *sk)
{
	struct thread *thread = current_thread(0);

	if (thread)
		note_socket(thread, sk, bpf_get_socket_cookie(sk), 0, CALL_RECEIVED);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(socket_changed, struct sock *sk, int from, int to)
{
	struct call_config *settings = settings_of_calls();
	struct connection *socket;
	int opened = to == BPF_TCP_ESTABLISHED && (from == BPF_TCP_SYN_SENT || from == BPF_TCP_SYN_RECV);

	if ((!opened && to != BPF_TCP_CLOSE) || sk->sk_protocol != IPPROTO_TCP || !settings ||
	    !settings->enabled)
		return 0;
	socket = bpf_sk_storage_get(&sockets, sk, 0, opened ? CREATE : 0);
	if (!socket)
		return 0;
	if (opened) {
		socket->side = from == BPF_TCP_SYN_SENT ? SIDE_CLIENT : SIDE_SERVER;
		socket->is_whole = 1;
		socket->is_new = 1;
		/* Now it has one: that of a TLS connection cannot be given where it is tied by its
		 * descriptor. */
		bpf_get_socket_cookie(sk);
	} else if (socket->id) {
		capture_end(socket);
		socket->id = 0;
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
