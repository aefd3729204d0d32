import { readFileSync } from 'node:fs'
import { LightSource, NodeSource, nodeClient, SeveralSources } from '@tollward/bitcoin'
import { AppError } from '@tollward/errors'
import { readSecretFile } from '@tollward/runtime'
import type { Logger } from 'pino'
import type { Config } from '../config.ts'

interface SourcesOptions {
  readonly log: Logger
  readonly signal: AbortSignal
}

/**
 * The configured nodes or light servers as one source of the chain. AppError `invalid_argument` if it is not one or the other, or
 * nodes are not described one by one.
 */
export function openSources(config: Config, options: SourcesOptions): SeveralSources | LightSource {
  const { nodeUrl, lightServers } = config
  if (nodeUrl !== undefined && lightServers === undefined) return nodes(config, nodeUrl, options)
  if (nodeUrl === undefined && lightServers !== undefined) return strangers(config, lightServers, options)
  throw new AppError(
    'invalid_argument',
    'Give either TOLLWARD_NODE_URL, or TOLLWARD_LIGHT_SERVERS for a chain that only others tell of.',
  )
}

function strangers(
  { network, lightCheckpoint, lightCaFile }: Config,
  servers: readonly string[],
  { log }: SourcesOptions,
): LightSource {
  if (network === 'mainnet' && lightCheckpoint === undefined) {
    // All headers since block 0 would be fetched at each start, and take half a gigabyte.
    throw new AppError(
      'invalid_argument',
      'Give TOLLWARD_LIGHT_CHECKPOINT on mainnet: height and hash of a block before the account was first paid.',
    )
  }
  return new LightSource({
    ...{ network, servers },
    ...(lightCheckpoint !== undefined && { checkpoint: lightCheckpoint }),
    ...(lightCaFile !== undefined && { ca: readFileSync(lightCaFile, 'utf8') }),
    onState: (server, state, error) => {
      if (error === undefined) log.info({ server, state }, 'light server')
      else log.warn({ server, state, err: error }, 'light server left')
    },
  })
}

function nodes(config: Config, urls: readonly string[], { log, signal }: SourcesOptions): SeveralSources {
  const { network, signetChallenge } = config
  const sources = urls.map((url, index) => {
    const zmqUrl = one(config.nodeZmqUrl, index, urls.length, 'TOLLWARD_NODE_ZMQ_URL')
    return new NodeSource({
      node: nodeClient({ url, ...credentials(config, index, urls.length), signal }),
      name: new URL(url).host,
      network,
      ...(signetChallenge === undefined ? {} : { signetChallenge }),
      ...(zmqUrl === undefined ? {} : { zmqUrl }),
    })
  })
  return new SeveralSources(sources, (node, state, error) => {
    if (error === undefined) log.info({ node, state }, 'bitcoin node')
    else log.warn({ node, state, err: error }, 'bitcoin node left')
  })
}

function credentials(config: Config, index: number, length: number) {
  const cookieFile = one(config.nodeCookieFile, index, length, 'TOLLWARD_NODE_COOKIE_FILE')
  const user = one(config.nodeUser, index, length, 'TOLLWARD_NODE_USER')
  const passwordFile = one(config.nodePasswordFile, index, length, 'TOLLWARD_NODE_PASSWORD_FILE')
  if (cookieFile !== undefined && user === undefined && passwordFile === undefined) return { cookieFile }
  if (cookieFile === undefined && user !== undefined && passwordFile !== undefined) {
    return { user, password: readSecretFile(passwordFile) }
  }
  throw new AppError(
    'invalid_argument',
    'Give for each node either TOLLWARD_NODE_COOKIE_FILE, or TOLLWARD_NODE_USER and TOLLWARD_NODE_PASSWORD_FILE.',
  )
}

/** A node's entry of a list that has one for each; an empty one: this node has none. */
function one(list: readonly string[] | undefined, index: number, nodes: number, variable: string): string | undefined {
  if (list === undefined) return undefined
  if (list.length !== nodes) {
    const message = `${variable} lists ${list.length}, but TOLLWARD_NODE_URL ${nodes}: give as many, in the same order; an empty entry is none.`
    throw new AppError('invalid_argument', message)
  }
  return list[index] === '' ? undefined : list[index]
}
