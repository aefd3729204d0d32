/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which socket a TLS connection runs over. Three rules, the surest first: the socket that was used inside a
 * call of the TLS library, or that the library was told (certain); the socket that the same thread read just
 * before it deciphered (token: taken once, and always open to correction, as event loops decipher what they
 * read). A socket that is known to carry text is never a token. What is certain is only replaced by what is
 * certain.
 */
#ifndef TOLLWARD_BINDING_H
#define TOLLWARD_BINDING_H

#include "call-maps.h"
#include "capture.h"

#define FILE_TYPE_MASK	 0170000
#define FILE_TYPE_SOCKET 0140000
#define GOLDEN_RATIO	 0x9e3779b97f4a7c15ULL
#define CPU_SHIFT	 48

static __always_inline void map_address4(struct address *to, __be32 from)
{
	__builtin_memset(to, 0, sizeof(*to));
	to->bytes[10] = 0xff;
	to->bytes[11] = 0xff;
	__builtin_memcpy(&to->bytes[12], &from, 4);
}

/* Reads both ends of a socket, which may be freed meanwhile: the cookie is compared afterwards. */
static __always_inline int read_addresses(struct connection *connection, const struct sock *sk, __u64 cookie)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	if (family == AF_INET) {
		map_address4(&connection->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		map_address4(&connection->peer, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	} else if (family == AF_INET6) {
		BPF_CORE_READ_INTO(&connection->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&connection->peer, sk, __sk_common.skc_v6_daddr);
	} else {
		return 0;
	}
	connection->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	connection->peer_port = __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
	return connection->peer_port != 0 &&
	       BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) == (__s64)cookie;
}

static __always_inline void tie(struct connection *connection, const struct used_socket *used,
				enum call_binding binding)
{
	if (connection->socket == used->socket && connection->cookie == used->cookie &&
	    connection->is_addressed) {
		if (connection->binding < binding)
			connection->binding = binding;
		if (connection->side == SIDE_UNKNOWN)
			connection->side = used->side;
		return;
	}
	if (connection->binding > binding)
		return;
	if (connection->is_addressed)
		count_calls(CALL_REBOUND, 1);
	connection->is_addressed =
		read_addresses(connection, (const struct sock *)used->socket, used->cookie);
	connection->socket = used->socket;
	connection->cookie = used->cookie;
	connection->side = used->side;
	connection->binding = connection->is_addressed ? binding : BINDING_NONE;
}

static __always_inline __u64 new_connection_id(void)
{
	__u32 zero = 0;
	__u64 *last = bpf_map_lookup_elem(&connection_ids, &zero);

	if (!last)
		return 0;
	return (__u64)bpf_get_smp_processor_id() << CPU_SHIFT | (__sync_fetch_and_add(last, 1) + 1);
}

/* Fills in what a connection is from its first call on. */
static __always_inline void open_connection(struct connection *connection, enum call_source source)
{
	struct call_config *settings = settings_of_calls();

	connection->id = new_connection_id();
	connection->source = source;
	connection->pid = told_pid(settings);
	connection->cgroup_id = bpf_get_current_cgroup_id();
	count_calls(CALL_CONNECTIONS, 1);
	if (settings && settings->sample_one_in > 1) {
		connection->is_unsampled =
			(connection->id * GOLDEN_RATIO >> 32) % settings->sample_one_in != 0;
		if (connection->is_unsampled)
			count_calls(CALL_UNSAMPLED, 1);
	}
}

/* The connection of a TLS object, a new one if it is not known yet or of an earlier process. */
static __always_inline struct connection *tls_connection(__u64 object, enum call_source source)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 started = task->group_leader->start_time;
	struct tls_key key = {.object = object, .pid = current_pid()};
	struct connection *known = bpf_map_lookup_elem(&tls_connections, &key);
	struct connection fresh = {};

	if (known && known->process_started == started)
		return known;
	fresh.process_started = started;
	open_connection(&fresh, source);
	if (bpf_map_update_elem(&tls_connections, &key, &fresh, BPF_ANY))
		count_calls(CALL_TABLE_FULL, 1);
	return bpf_map_lookup_elem(&tls_connections, &key);
}

/* Says that there will be no more of the connection of a TLS object, and forgets it. */
static __always_inline void end_tls_connection(__u64 object)
{
	struct tls_key key = {.object = object, .pid = current_pid()};
	struct connection *connection = bpf_map_lookup_elem(&tls_connections, &key);

	if (!connection)
		return;
	capture_end(connection);
	bpf_map_delete_elem(&tls_connections, &key);
}

/* The open file with this number of the current process; 0: none. */
static __always_inline struct file *file_of_descriptor(__u32 descriptor)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct fdtable *table = task->files->fdt;
	struct file *file = 0;

	if (descriptor >= table->max_fds ||
	    bpf_probe_read_kernel(&file, sizeof(file), table->fd + descriptor))
		return 0;
	return file;
}

/* The socket of a file that is one. */
static __always_inline int socket_of_file(const struct file *file, struct used_socket *used)
{
	struct socket *socket = BPF_CORE_READ(file, private_data);
	struct sock *sk = BPF_CORE_READ(socket, sk);

	used->socket = (__u64)sk;
	used->cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	used->side = SIDE_UNKNOWN;
	return sk != 0;
}

/* The socket behind a descriptor of the current process. */
static __always_inline int socket_of_descriptor(__u32 descriptor, struct used_socket *used)
{
	struct file *file = file_of_descriptor(descriptor);

	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & FILE_TYPE_MASK) != FILE_TYPE_SOCKET)
		return 0;
	return socket_of_file(file, used);
}

#endif
