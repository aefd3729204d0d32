import { NETWORK_NAMES } from '@tollward/bitcoin'
import { baseConfig, port } from '@tollward/runtime'
import { z } from 'zod'

/** Configuration of payment-verifier, from TOLLWARD_* variables. */
export const Config = z.strictObject({
  ...baseConfig,
  listenHost: z.string().min(1).default('127.0.0.1'),
  listenPort: port.default(4020),
  /** Where clients reach this service: begins the links in its answers. */
  publicUrl: z.url({ protocol: /^https?$/ }).transform((url) => url.replace(/\/+$/, '')),
  network: z.enum(NETWORK_NAMES),
  /** BIP-84 account: xpub, zpub, tpub or vpub, or a descriptor wpkh(…/0/*). Never a private key. */
  accountKey: z.string().min(1),
  /** JSON-RPC of the bitcoin node. */
  nodeUrl: z.url({ protocol: /^https?$/ }).refine((url) => !URL.canParse(url) || new URL(url).username === '', {
    error:
      'holds no credentials: give them by TOLLWARD_NODE_COOKIE_FILE, or TOLLWARD_NODE_USER and TOLLWARD_NODE_PASSWORD_FILE',
  }),
  /** The node's cookie file; or name and a file with the password, not readable by others. */
  nodeCookieFile: z.string().min(1).optional(),
  nodeUser: z.string().min(1).optional(),
  nodePasswordFile: z.string().min(1).optional(),
  /** tcp://host:port on which the node publishes hashblock and rawtx; without it payments are found by polling. */
  nodeZmqUrl: z
    .string()
    .regex(/^(tcp|ipc):\/\/.+$/, { error: 'is tcp://host:port' })
    .optional(),
  /** A node that is silent for longer makes this service not ready. */
  nodeSilentMaxMs: z.coerce.number<string>().int().min(100).default(30_000),
  /** Unpaid invoices that one client may have at once: each takes an address for ever. */
  openInvoicesMax: z.coerce.number<string>().int().min(1).max(10_000).default(20),
  /** The same for one client that registered itself: of those anybody can have many. */
  selfRegisteredOpenInvoicesMax: z.coerce.number<string>().int().min(1).max(10_000).default(3),
  /** Invoices that one client may open in any minute. */
  invoicesPerMinute: z.coerce.number<string>().int().min(1).max(10_000).default(30),
})

export type Config = z.output<typeof Config>
