/** A check of the whole tree: a command that ends with 0 when all is well. */
export interface Check {
  readonly name: string
  readonly command: readonly [string, ...string[]]
  /** A program beyond the npm dependencies that it needs. */
  readonly needs?: string
  /** A change after which it must fail: text put into a new file, or replaced in one that is there. */
  readonly planted:
    | { readonly file: string; readonly text: string }
    | { readonly file: string; readonly replace: string; readonly by: string }
}

export const CHECKS: readonly Check[] = [
  {
    name: 'types: TypeScript, strict',
    command: ['tsc', '-p', 'tsconfig.json'],
    planted: { file: 'libs/errors/src/planted.ts', text: "export const planted: number = 'text'\n" },
  },
  {
    name: 'style and purity: biome',
    command: ['biome', 'ci', '--error-on-warnings', '--colors=off', '.'],
    planted: {
      file: 'services/sensor-ingest/src/domain/planted.ts',
      text: "import { readFileSync } from 'node:fs'\n\nexport const planted = readFileSync('/etc/hostname')\n",
    },
  },
  {
    name: 'nothing unused: knip',
    command: ['knip'],
    planted: { file: 'libs/errors/src/planted.ts', text: 'export const planted = 1\n' },
  },
  {
    name: 'direction of imports: turbo boundaries',
    command: ['turbo', 'boundaries'],
    planted: {
      file: 'services/gateway/src/planted.ts',
      text: "import '../../authorizer/src/config.ts'\n",
    },
  },
  {
    name: 'schemas: buf lint',
    command: ['buf', 'lint'],
    planted: {
      file: 'proto/tollward/sensor/v1/planted.proto',
      text: 'syntax = "proto3";\n\npackage tollward.sensor.v1;\n\nmessage planted_message {}\n',
    },
  },
  {
    name: 'schemas: nothing broken since the release',
    command: ['buf', 'breaking', '--against', 'proto/released.binpb'],
    planted: { file: 'proto/tollward/sensor/v1/flow.proto', replace: 'string node = 1;', by: 'string node = 16;' },
  },
  {
    name: 'schemas: generated code is current',
    command: ['node', 'test/checks/generated.ts'],
    planted: {
      file: 'proto/tollward/sensor/v1/flow.proto',
      replace: 'uint64 lost = 6;',
      by: 'uint64 lost = 6;\n  uint64 planted = 99;',
    },
  },
  {
    name: 'style of C: clang-format',
    command: ['node', 'test/checks/c-style.ts'],
    needs: 'clang-format',
    planted: { file: 'bpf/planted.c', text: 'int  planted( void ){return 1;}\n' },
  },
]
