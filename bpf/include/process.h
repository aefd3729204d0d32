/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What number a process has where the sensor lives: in a PID namespace of its own there are other numbers. */
#ifndef TOLLWARD_PROCESS_H
#define TOLLWARD_PROCESS_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* As deep as the kernel nests PID namespaces. */
#define PID_LEVELS_MAX 32

/* What follows ___ is left out when fields are looked up in the running kernel's BTF. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct ns_common___pid {
	unsigned int inum;
};
struct pid_namespace___pid {
	struct ns_common___pid ns;
};
struct upid___pid {
	int nr;
	struct pid_namespace___pid *ns;
};
struct pid___pid {
	unsigned int level;
	struct upid___pid numbers[1];
};
struct task_struct___pid {
	int tgid;
	struct task_struct___pid *group_leader;
	struct pid___pid *thread_pid;
};
#pragma clang attribute pop

/*
 * The process id of a task as seen from the PID namespace with this inode; 0: it cannot be seen from there.
 * The first namespace sees all, under the kernel's own numbers; it is asked for as 0.
 */
static __always_inline __u32 process_id_in(__u32 pid_namespace, const void *task)
{
	const struct task_struct___pid *leader;
	const struct pid___pid *pid;
	const void *at;
	__u32 level;

	if (!pid_namespace)
		return BPF_CORE_READ((const struct task_struct___pid *)task, tgid);
	leader = BPF_CORE_READ((const struct task_struct___pid *)task, group_leader);
	pid = BPF_CORE_READ(leader, thread_pid);
	level = BPF_CORE_READ(pid, level);
	at = (const void *)pid + bpf_core_field_offset(struct pid___pid, numbers);
	for (__u32 i = 0; i < PID_LEVELS_MAX && i <= level; i++) {
		const struct upid___pid *number = at + i * bpf_core_type_size(struct upid___pid);

		if (BPF_CORE_READ(number, ns, ns.inum) == pid_namespace)
			return BPF_CORE_READ(number, nr);
	}
	return 0;
}

#endif
