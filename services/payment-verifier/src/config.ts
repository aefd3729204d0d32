import { NETWORK_NAMES } from '@tollward/bitcoin'
import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'

/** Each is asked whenever there may be a new block; more would not make the chain any surer. */
const NODES_MAX = 8

const list = z
  .string()
  .min(1)
  .transform((text) => text.split(',').map((entry) => entry.trim()))

const nodeUrl = z.url({ protocol: /^https?$/ }).refine((url) => !URL.canParse(url) || new URL(url).username === '', {
  error:
    'holds no credentials: give them by TOLLWARD_NODE_COOKIE_FILE, or TOLLWARD_NODE_USER and TOLLWARD_NODE_PASSWORD_FILE',
})

/** All are asked all the time. */
const LIGHT_SERVERS_MAX = 16

const lightServer = z
  .url({ protocol: /^(tcp|ssl|https?)$/ })
  .refine((url) => !URL.canParse(url) || /^https?:/.test(url) || new URL(url).port !== '', {
    error: 'is tcp://host:port, ssl://host:port or http(s)://…',
  })

/** Configuration of payment-verifier, from TOLLWARD_* variables. */
export const Config = z.strictObject({
  ...baseConfig,
  listenHost: z.string().min(1).default('127.0.0.1'),
  listenPort: port.default(4020),
  /** Where clients reach this service: begins the links in its answers. */
  publicUrl: z.url({ protocol: /^https?$/ }).transform((url) => url.replace(/\/+$/, '')),
  network: z.enum(NETWORK_NAMES),
  /** Which signet, by the script that its blocks satisfy, in hexadecimal (BIP-325); by default the public one. */
  signetChallenge: z
    .string()
    .regex(/^([0-9a-f]{2})+$/, { error: 'is a script in lower-case hexadecimal' })
    .optional(),
  /** BIP-84 account: xpub, zpub, tpub or vpub; or a descriptor wpkh(…/0/*) (BIP-84) or tr(…/0/*) (BIP-86). Never a private key. */
  accountKey: z.string().min(1),
  /** Height of the first block that can pay the account: from there a new ledger looks for used addresses. On regtest 0. */
  accountBirthday: z.coerce.number<string>().int().min(0).optional(),
  /** JSON-RPC of the bitcoin node; several nodes separated by commas, here and in what follows in the same order. */
  nodeUrl: list.pipe(z.array(nodeUrl).max(NODES_MAX)).optional(),
  /** The node's cookie file; or name and a file with the password, not readable by others. */
  nodeCookieFile: list.optional(),
  nodeUser: list.optional(),
  nodePasswordFile: list.optional(),
  /** tcp://host:port on which the node publishes hashblock and rawtx; without it payments are found by polling. */
  nodeZmqUrl: list.pipe(z.array(z.string().regex(/^((tcp|ipc):\/\/.+)?$/, { error: 'is tcp://host:port' }))).optional(),
  /**
   * Instead of nodes, servers of others, trusted for nothing: `tcp://host:port` or `ssl://host:port` of the Electrum protocol,
   * `https://…` of Esplora's interface; separated by commas.
   */
  lightServers: list.pipe(z.array(lightServer).max(LIGHT_SERVERS_MAX)).optional(),
  /** `height:hash` of a block that is known to be in the best chain, from which on headers are checked; by default block 0. */
  lightCheckpoint: z
    .string()
    .regex(/^\d{1,9}:[0-9a-f]{64}$/, { error: 'is height:hash of a block' })
    .transform((text) => ({ height: Number(text.slice(0, -65)), hash: text.slice(-64) }))
    .optional(),
  /** File with certificates, in PEM, that vouch for ssl:// servers instead of the system's; that of a server itself will do. */
  lightCaFile: z.string().min(1).optional(),
  /** A node that is silent for longer makes this service not ready. */
  nodeSilentMaxMs: z.coerce.number<string>().int().min(100).default(30_000),
  /** Unpaid invoices that one client may have at once: each takes an address for ever. */
  openInvoicesMax: z.coerce.number<string>().int().min(1).max(10_000).default(20),
  /** The same for one client that registered itself: of those anybody can have many. */
  selfRegisteredOpenInvoicesMax: z.coerce.number<string>().int().min(1).max(10_000).default(3),
  /** A decision point that is not heard of for so long loses its parts of quotas, and they come back a little later. */
  leaseLastsMs: z.coerce.number<string>().int().min(500).max(3_600_000).default(30_000),
  /** Invoices that one client may open in any minute. */
  invoicesPerMinute: z.coerce.number<string>().int().min(1).max(10_000).default(30),
})

export type Config = z.output<typeof Config>
