import { readFileSync, statSync } from 'node:fs'
import { AppError } from '@tollward/errors'
import { z } from 'zod'

const PREFIX = 'TOLLWARD_'

/** A TCP port; 0 lets the system choose. */
export const port = z.coerce.number<string>().int().min(0).max(65_535)

/** A switch in the environment. */
export const flag = z.enum(['true', 'false']).transform((text) => text === 'true')

/** What every process is told that has a log, metrics and health. */
export const processConfig = {
  /** Where metrics and health are served. */
  healthHost: z.string().min(1).default('127.0.0.1'),
  healthPort: port,
  logLevel: z.enum(['trace', 'debug', 'info', 'warn', 'error', 'silent']).default('info'),
} as const

/** What every service is told. Spread it into a service's own schema. */
export const baseConfig = {
  /** nats://host:port, several separated by commas. */
  natsUrl: z.string().min(1).default('nats://127.0.0.1:4222'),
  /** File with the NKEY seed of the service; not readable by others. */
  natsNkeyFile: z.string().min(1).optional(),
  ...processConfig,
} as const

/** The environment variable of a configuration key: natsUrl is TOLLWARD_NATS_URL. */
export function variableOf(key: string): string {
  return PREFIX + key.replace(/[A-Z]/g, '_$&').toUpperCase()
}

/**
 * Reads a service's configuration from the TOLLWARD_* variables of an environment. Throws AppError `invalid_argument` that
 * names every variable that is missing, wrong or unknown, one a line.
 */
export function readConfig<Schema extends z.ZodObject>(
  schema: Schema,
  environment: Readonly<Record<string, string | undefined>>,
): z.output<Schema> {
  const given: Record<string, string> = {}
  for (const [variable, value] of Object.entries(environment)) {
    if (!variable.startsWith(PREFIX) || value === undefined) continue
    const key = variable.slice(PREFIX.length).toLowerCase()
    given[key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())] = value
  }
  const result = z.strictObject(schema.shape).safeParse(given)
  if (result.success) return result.data as z.output<Schema>
  throw new AppError('invalid_argument', `The configuration is wrong:\n${faults(result.error, given).join('\n')}`)
}

/**
 * Reads an NKEY seed. AppError `failed_precondition` if others than the owner may read the file: a secret that everybody can
 * read is none.
 */
export function readSecretFile(path: string): string {
  if ((statSync(path).mode & 0o077) !== 0) {
    throw new AppError('failed_precondition', `${path} can be read by others; run: chmod 600 ${path}`)
  }
  return readFileSync(path, 'utf8').trim()
}

function faults(error: z.ZodError, given: Record<string, string>): string[] {
  return error.issues.flatMap((issue) => {
    if (issue.code === 'unrecognized_keys')
      return issue.keys.map((key) => `  ${variableOf(key)}: there is no such variable`)
    const key = String(issue.path[0] ?? '')
    const where = [variableOf(key), ...issue.path.slice(1).map(String)].join('.')
    return key === '' || Object.hasOwn(given, key) ? `  ${where}: ${issue.message}` : `  ${where}: is missing`
  })
}
