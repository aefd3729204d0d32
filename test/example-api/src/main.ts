import process from 'node:process'
import { createApi } from './server.ts'

const host = process.env.EXAMPLE_API_HOST ?? '127.0.0.1'
const port = Number(process.env.EXAMPLE_API_PORT ?? 8081)

const api = createApi()
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => void api.close())
await api.listen({ host, port })
