import { createHash, randomBytes } from 'node:crypto'
import { chmod, mkdir } from 'node:fs/promises'
import { createUser, fromSeed } from '@nats-io/nkeys'
import { ACCESS } from '@tollward/bus'
import { BIP32Factory } from 'bip32'
import * as secp256k1 from 'tiny-secp256k1'
import type { NatsUsers } from './nats-config.ts'
import { SIEM_API_PREFIX, SIEM_DURABLE } from './nats-config.ts'
import type { Paths } from './paths.ts'
import { madeOnce, writeSecret } from './secret-file.ts'
import { makeCertificates } from './tls.ts'

/** The operator's OAuth client, whose credential the tollward command takes. */
const OPERATOR_CLIENT_ID = 'operator'
const OPERATOR_SCOPES = ['tollward.read', 'tollward.admin']

/** BIP-84, test networks, first account. */
const ACCOUNT_PATH = "m/84'/1'/0'"

/** Version bytes that regtest shares with the test networks (BIP-32). */
const TEST_NETWORK = {
  bip32: { public: 0x043587cf, private: 0x04358394 },
  wif: 0xef,
  messagePrefix: '',
  bech32: 'bcrt',
  pubKeyHash: 0x6f,
  scriptHash: 0xc4,
}

const SEED_BYTES = 32

/** What the stack needs to know of its keys; the secrets themselves stay in their files. */
export interface Keys {
  readonly users: NatsUsers
  /** Extended public key from which invoices' addresses are derived. */
  readonly accountKey: string
}

/** Where clients of this stack find it, as the operator's file says. */
export interface Endpoints {
  readonly natsUrl: string
  readonly issuerUrl: string
  readonly adminApi: string
}

/**
 * Makes every key and credential of the stack that is not there yet: one NKEY a service, the provisioner's and a SIEM's, the
 * issuer's master secret, the operator's client, the wallet seed behind the invoices' addresses, a local CA and the
 * certificates of the gateway and the issuer. Files of secrets are 0600 in a directory that is 0700.
 */
export async function ensureKeys(paths: Paths, endpoints: Endpoints): Promise<Keys> {
  await mkdir(paths.keys, { recursive: true, mode: 0o700 })
  await chmod(paths.keys, 0o700)
  const services: Record<string, string> = {}
  for (const name of Object.keys(ACCESS)) services[name] = await natsUser(paths.natsSeed(name))
  const users = {
    services,
    provisioner: await natsUser(paths.natsSeed('provisioner')),
    siem: await natsUser(paths.natsSeed('siem')),
  }
  await madeOnce(paths.issuerSecret, async () => randomBytes(SEED_BYTES).toString('base64url'))
  await operatorClient(paths, endpoints)
  await writeSecret(
    paths.siem,
    JSON.stringify({
      servers: endpoints.natsUrl,
      nkeySeedFile: paths.natsSeed('siem'),
      inboxPrefix: '_INBOX_siem',
      apiPrefix: SIEM_API_PREFIX,
      stream: 'FINDINGS',
      durable: SIEM_DURABLE,
    }),
  )
  await makeCertificates(paths)
  const seed = await madeOnce(paths.walletSeed, async () => randomBytes(SEED_BYTES).toString('hex'))
  const account = BIP32Factory(secp256k1).fromSeed(Buffer.from(seed, 'hex'), TEST_NETWORK).derivePath(ACCOUNT_PATH)
  return { users, accountKey: account.neutered().toBase58() }
}

async function natsUser(path: string): Promise<string> {
  const seed = await madeOnce(path, async () => new TextDecoder().decode(createUser().getSeed()))
  return fromSeed(new TextEncoder().encode(seed)).getPublicKey()
}

async function operatorClient(paths: Paths, { issuerUrl, adminApi }: Endpoints): Promise<void> {
  const clientSecret = await madeOnce(paths.operatorSecret, async () => randomBytes(SEED_BYTES).toString('base64url'))
  await writeSecret(
    paths.operatorClient,
    JSON.stringify({
      clientId: OPERATOR_CLIENT_ID,
      secretSha256: createHash('sha256').update(clientSecret).digest('hex'),
      scopes: OPERATOR_SCOPES,
    }),
  )
  await writeSecret(
    paths.operator,
    JSON.stringify({ issuer: issuerUrl, adminApi, clientId: OPERATOR_CLIENT_ID, clientSecret }),
  )
}
