import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { describe, test } from 'node:test'
import { parse } from 'yaml'

const SHIPPED = resolve(import.meta.dirname, '../../deploy/envoy')
const EXT_AUTHZ = 'envoy.filters.http.ext_authz'
/** What all have in common, so that what is shown of one holds for all. */
const COMMON = [
  'use_remote_address',
  'xff_num_trusted_hops',
  'normalize_path',
  'merge_slashes',
  'path_with_escaped_slashes_action',
  'strip_trailing_host_dot',
  'request_headers_timeout',
  'common_http_protocol_options',
  'max_request_headers_kb',
  'access_log',
]

interface Filter {
  readonly name: string
  readonly typed_config: Readonly<Record<string, unknown>>
}

describe('each Envoy configuration that is shipped', async () => {
  const files = (await readdir(SHIPPED)).filter((file) => file.endsWith('.yaml'))
  const base = await managerOf('envoy.yaml')

  test('are several', () => assert.ok(files.length >= 5, String(files)))

  for (const file of files) {
    test(`${file} asks first, refuses without an answer, and reads paths and headers as the others`, async () => {
      const manager = await managerOf(file)
      const asks = filtersOf(manager).find(({ name }) => name === EXT_AUTHZ)
      if (asks === undefined) return
      assert.equal(filtersOf(manager)[0], asks, 'no filter acts before it')
      assert.deepEqual(asks, filtersOf(base)[0])
      assert.equal(asks.typed_config.failure_mode_allow, false)
      for (const setting of COMMON) assert.deepEqual(manager[setting], base[setting], setting)
    })
  }

  test('is explained in the README, setting by setting', async () => {
    const readme = await readFile(resolve(SHIPPED, 'README.md'), 'utf8')
    for (const file of files) assert.ok(readme.includes(`\`${file}\``), file)
    for (const setting of Object.keys(filtersOf(base)[0]?.typed_config ?? {})) {
      if (!['@type', 'transport_api_version', 'grpc_service'].includes(setting))
        assert.ok(readme.includes(setting), setting)
    }
  })
})

async function managerOf(file: string): Promise<Readonly<Record<string, unknown>>> {
  const config = parse(await readFile(resolve(SHIPPED, file), 'utf8'))
  return config.static_resources.listeners[0].filter_chains[0].filters[0].typed_config
}

function filtersOf(manager: Readonly<Record<string, unknown>>): readonly Filter[] {
  return manager.http_filters as Filter[]
}
