export { acquireBitcoind } from './acquire/bitcoind.ts'
export { acquireNatsServer, NATS_SERVER_MIN } from './acquire/nats-server.ts'
export { AcquireError, type AcquireOptions, findOnPath, type Tool } from './acquire/tool.ts'
export { withLock } from './lock.mjs'
