import { once } from 'node:events'
import { chmodSync, lstatSync, renameSync, rmSync, type Stats, statSync } from 'node:fs'
import { connect, type Server } from 'node:net'
import { AppError } from '@tollward/errors'

/** Those of the socket's group may ask; nobody else. */
const SOCKET_MODE = 0o660

/**
 * Has a server listen on a unix socket. The file of a process that is gone is replaced; AppError `failed_precondition` where somebody
 * listens there, or where it is no socket. The file goes with the disposal, unless it is somebody else's by then.
 */
export async function bindSocket(server: Server, path: string): Promise<Disposable> {
  const there = lstatSync(path, { throwIfNoEntry: false })
  if (there && !there.isSocket()) throw new AppError('failed_precondition', `${path} is there and is no socket`)
  if (there && (await isListening(path))) {
    throw new AppError('failed_precondition', `another process listens on ${path}; stop it, or choose another path`)
  }
  // Bound under another name, and there under its own only with its mode: nobody connects in between.
  const hidden = `${path}.new`
  rmSync(hidden, { force: true })
  server.listen({ path: hidden })
  await once(server, 'listening')
  chmodSync(hidden, SOCKET_MODE)
  const own = statSync(hidden)
  renameSync(hidden, path)
  return {
    [Symbol.dispose]: () => {
      if (isSame(own, statSync(path, { throwIfNoEntry: false }))) rmSync(path)
    },
  }
}

function isSame(own: Stats, other: Stats | undefined): boolean {
  return own.dev === other?.dev && own.ino === other.ino
}

async function isListening(path: string): Promise<boolean> {
  const socket = connect(path)
  try {
    await once(socket, 'connect')
    return true
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ECONNREFUSED') return false
    throw new AppError('failed_precondition', `${path} cannot be tried`, { cause: error })
  } finally {
    socket.destroy()
  }
}
