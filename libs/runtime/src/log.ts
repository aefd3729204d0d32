import { type Logger, type LoggerOptions, pino } from 'pino'

/** Fields whose values never appear in a log, wherever they stand. */
const SECRET_FIELDS = [
  'authorization',
  'Authorization',
  'token',
  'internalToken',
  'clientSecret',
  'client_secret',
  'password',
  'seed',
  'txid',
  'cookie',
  'set-cookie',
  'dpop',
]

/** The root log of a process: JSON lines on standard output, secrets replaced, errors under `err`. */
export function createLog(name: string, level: string, destination?: { write(line: string): void }): Logger {
  const options: LoggerOptions = {
    name,
    level,
    base: { service: name },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    redact: {
      paths: SECRET_FIELDS.flatMap((field) => {
        const key = /^[a-zA-Z_]+$/.test(field) ? field : `["${field}"]`
        const below = key.startsWith('[') ? `*${key}` : `*.${key}`
        return [key, below, below.replace('*', '*.*')]
      }),
      censor: '[secret]',
    },
  }
  return destination ? pino(options, destination) : pino(options)
}
