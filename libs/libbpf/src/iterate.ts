import { closeSync, read } from 'node:fs'
import { promisify } from 'node:util'
import { check, libbpf } from './native.ts'
import type { BpfProgram } from './object.ts'

/** Attach type of <linux/bpf.h>. */
const BPF_TRACE_ITER = 28
const CHUNK_BYTES = 65_536
const readAsync = promisify(read)

/**
 * Runs a program of the kind `iter` over everything there is, in a thread of libuv's pool, and gives the text it wrote. The
 * kernel pauses after a million objects that wrote nothing; it is asked to go on then.
 */
export async function iterate(program: BpfProgram): Promise<string> {
  const what = `running ${program.name}`
  const link = check(what, libbpf().bpf_link_create(program.fd, 0, BPF_TRACE_ITER, null))
  try {
    const fd = check(what, libbpf().bpf_iter_create(link))
    try {
      return await readAll(fd)
    } finally {
      closeSync(fd)
    }
  } finally {
    closeSync(link)
  }
}

async function readAll(fd: number): Promise<string> {
  const chunks: Buffer[] = []
  while (true) {
    const chunk = Buffer.alloc(CHUNK_BYTES)
    try {
      const { bytesRead } = await readAsync(fd, chunk, 0, chunk.length, null)
      if (bytesRead === 0) return Buffer.concat(chunks).toString()
      chunks.push(chunk.subarray(0, bytesRead))
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'EAGAIN')) throw error
    }
  }
}
