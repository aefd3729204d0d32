/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Records of what a connection carried. Whatever is left out, for whichever reason, is added to `skipped` of
 * its connection, so that the reader knows where bytes are missing, and counted. Nobody is woken for a
 * record: the reader looks by itself.
 */
#ifndef TOLLWARD_CAPTURE_H
#define TOLLWARD_CAPTURE_H

#include "call-maps.h"
#include "process.h"

/* Of the beginning of a connection of HTTP/2. */
#define PREFACE_BYTES 24
/* Stops the compiler from dropping a bound that the verifier must see. */
#define KEEP(value) asm volatile("" : "+r"(value))
/* At most so much, compared in the very register that is used: the verifier of older kernels knows nothing of
 * copies.
 */
#define AT_MOST(value, most) asm volatile("if %0 <= %1 goto +1\n\t%0 = %1" : "+r"(value) : "i"(most))

struct small_record {
	struct call_chunk chunk;
	__u8 payload[PAYLOAD_SMALL];
};
struct middle_record {
	struct call_chunk chunk;
	__u8 payload[PAYLOAD_MIDDLE];
};
struct large_record {
	struct call_chunk chunk;
	__u8 payload[PAYLOAD_LARGE];
};

/* One read or write: where its bytes are in the process, and which way they went. */
struct transfer {
	__u64 buffer; /* 0: nobody knows */
	__u64 bytes;
	enum call_direction direction;
};

static __always_inline struct call_config *settings_of_calls(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&call_config, &zero);
}

/* By the kernel's own number. */
static __always_inline __u32 current_pid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

/* By the number that the reader knows it by. */
static __always_inline __u32 told_pid(const struct call_config *settings)
{
	if (!settings || !settings->pidns_inum)
		return current_pid();
	return process_id_in(settings->pidns_inum, (void *)bpf_get_current_task());
}

/*
 * Token bucket in one number: the time until which the cgroup's bytes are paid for, which must not be further
 * ahead than the burst. A lost race gives one record away.
 */
static __always_inline int is_within_budget(const struct call_config *settings, __u64 cgroup, __u64 bytes)
{
	__u64 now, paid_until, begin, end, *budget;

	if (settings->picoseconds_per_byte == 0)
		return 1;
	now = bpf_ktime_get_boot_ns();
	end = now + bytes * settings->picoseconds_per_byte / 1000;
	budget = bpf_map_lookup_elem(&budgets, &cgroup);
	if (!budget) {
		bpf_map_update_elem(&budgets, &cgroup, &end, BPF_ANY);
		return 1;
	}
	paid_until = *budget;
	begin = paid_until > now ? paid_until : now;
	end += begin - now;
	if (end > now + settings->burst_ns)
		return 0;
	__sync_val_compare_and_swap(budget, paid_until, end);
	return 1;
}

/* A function of its own: the object's BTF then names the record, for the test that compares it. */
static __noinline void describe(struct call_chunk *chunk, const struct connection *connection)
{
	chunk->connection = connection->id;
	chunk->at_ns = bpf_ktime_get_boot_ns();
	chunk->cgroup_id = connection->cgroup_id;
	chunk->pid = connection->pid;
	chunk->local_port = connection->local_port;
	chunk->peer_port = connection->peer_port;
	chunk->local = connection->local;
	chunk->peer = connection->peer;
	chunk->binding = connection->binding;
	chunk->side = connection->side;
	chunk->source = connection->source;
	chunk->flags = connection->is_addressed ? CHUNK_ADDRESSED : 0;
}

/* Of HTTP/2, whose writes hold frames of many calls, each is read whole: `PRI * HTTP`, once at the beginning.
 */
static __always_inline int begins_http2(const __u8 *payload)
{
	return payload[0] == 'P' && payload[1] == 'R' && payload[2] == 'I' && payload[3] == ' ' &&
	       payload[4] == '*' && payload[5] == ' ' && payload[6] == 'H' && payload[7] == 'T';
}

/* Reads the payload into a reserved record and hands it over. */
#define FILL(record, connection, transfer, want)                                                             \
	do {                                                                                                 \
		__u64 length = (want);                                                                       \
                                                                                                             \
		describe(&(record)->chunk, connection);                                                      \
		(record)->chunk.cgroup_id = bpf_get_current_cgroup_id();                                     \
		(record)->chunk.pid = told_pid(settings_of_calls());                                         \
		(record)->chunk.skipped = *skipped;                                                          \
		(record)->chunk.total = (transfer)->bytes;                                                   \
		(record)->chunk.direction = (transfer)->direction;                                           \
		bpf_get_current_comm((record)->chunk.comm, COMM_BYTES);                                      \
		AT_MOST(length, sizeof((record)->payload));                                                  \
		if (length > 0 &&                                                                            \
		    bpf_probe_read_user((record)->payload, length, (void *)(transfer)->buffer)) {            \
			count_calls(CALL_UNREADABLE, 1);                                                     \
			length = 0;                                                                          \
		}                                                                                            \
		if (length >= PREFACE_BYTES && begins_http2((record)->payload))                              \
			(connection)->is_http2 = 1;                                                          \
		(record)->chunk.captured = length;                                                           \
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);                                                \
		captured = length;                                                                           \
	} while (0)

/* Global, so that the verifier looks at it once. */
__noinline int capture(struct connection *connection, const struct transfer *transfer)
{
	struct call_config *settings = settings_of_calls();
	__u64 want, most, *skipped, captured = 0;

	if (!connection || !transfer || !settings)
		return 0;
	skipped = transfer->direction == CALL_SENT ? &connection->skipped[CALL_SENT]
						   : &connection->skipped[CALL_RECEIVED];
	want = transfer->buffer ? transfer->bytes : 0;
	if (!transfer->buffer)
		count_calls(CALL_UNREADABLE, 1);
	most = connection->is_http2 ? PAYLOAD_LARGE : settings->payload_bytes_max;
	if (want > most)
		want = most;
	if (!is_within_budget(settings, bpf_get_current_cgroup_id(), want)) {
		count_calls(CALL_BUDGET, 1);
		goto lost;
	}
	if (want <= PAYLOAD_SMALL) {
		struct small_record *record = bpf_ringbuf_reserve(&calls, sizeof(*record), 0);

		if (!record)
			goto full;
		FILL(record, connection, transfer, want);
	} else if (want <= PAYLOAD_MIDDLE) {
		struct middle_record *record = bpf_ringbuf_reserve(&calls, sizeof(*record), 0);

		if (!record)
			goto full;
		FILL(record, connection, transfer, want);
	} else {
		struct large_record *record = bpf_ringbuf_reserve(&calls, sizeof(*record), 0);

		if (!record)
			goto full;
		FILL(record, connection, transfer, want);
	}
	*skipped = 0;
	count_calls(CALL_CHUNKS, 1);
	count_calls(CALL_BYTES, captured);
	if (transfer->bytes > want)
		count_calls(CALL_TRUNCATED, transfer->bytes - want);
	return 1;
full:
	count_calls(CALL_RING_FULL, 1);
lost:
	__sync_fetch_and_add(skipped, transfer->bytes);
	return 0;
}

/* Says that there will be no more of the connection. */
static __always_inline void capture_end(const struct connection *connection)
{
	struct call_chunk *chunk;

	if (connection->is_unsampled)
		return;
	chunk = bpf_ringbuf_reserve(&calls, sizeof(*chunk), 0);
	if (!chunk) {
		count_calls(CALL_RING_FULL, 1);
		return;
	}
	__builtin_memset(chunk, 0, sizeof(*chunk));
	describe(chunk, connection);
	chunk->flags |= CHUNK_CLOSED;
	bpf_ringbuf_submit(chunk, BPF_RB_NO_WAKEUP);
}

#endif
