import type { Decision } from './domain/answer.ts'

/*
 * Requests that mean two things to two readers, by the ways in which servers and authorisers came to disagree, and requests that
 * only look odd. A test sends them to a decision point that guards CONFUSION_POLICY.
 */

/** A request as it goes over the wire; what is absent is ordinary. */
export interface WireRequest {
  readonly method?: string
  readonly host?: string
  readonly target: string
  readonly headers?: readonly (readonly [name: string, value: string])[]
}

/** What is open stands beside what nobody may reach: the closer, the easier to confuse. */
export const CONFUSION_POLICY = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: guarded }
spec:
  hosts: [api.example]
  rules:
    - { name: root, match: { methods: [GET], path: / }, anonymous: true }
    - { name: public, match: { prefix: /public }, anonymous: true }
    - { name: file, match: { path: "/files/{name}" }, anonymous: true }
    - { name: secret-file, match: { path: /files/secret }, require: { token: { scopes: [admin] } } }
    - { name: pictures, match: { glob: "/pictures/**/*.png" }, anonymous: true }
    - { name: admin, match: { prefix: /admin }, require: { token: { scopes: [admin] } } }
    - { name: items, match: { methods: [GET, POST, HEAD, OPTIONS], path: /items }, anonymous: true }
    - { name: tenant, match: { path: /tenant, headers: { x-tenant: open } }, anonymous: true }
    - { name: report, match: { path: /report, conditions: [{ query: kind, equals: summary }] }, anonymous: true }
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: open }
spec:
  hosts: [open.example, "*.open.example"]
  rules:
    - { name: all, match: { prefix: / }, anonymous: true }
`

/** Paths that no request of a stranger may come to, in whatever spelling the API may read them. */
const PROTECTED = /^\/(admin(\/|$)|files\/secret(\/|$))/

/** Headers by which some servers take another path, method or host than the request's own. */
const OVERRIDES = new Set([
  'x-original-url',
  'x-rewrite-url',
  'x-original-uri',
  'x-http-method-override',
  'x-http-method',
  'x-method-override',
])

/**
 * How an admitted request comes to something that is protected; undefined: no reader that is known here takes it for that.
 * `headers`: what the client sent.
 */
export function breach(decision: Decision, { host = 'api.example', headers = [] }: WireRequest): string | undefined {
  if (!decision.admitted) return undefined
  const { target, upstream } = decision
  if (host.toLowerCase().includes('api.example') && target.host !== 'api.example') return `host read as ${target.host}`
  const removed = new Set([...upstream.remove, ...upstream.set.map(([name]) => name)])
  for (const [name] of headers) {
    if (misleads(name) && !removed.has(name.toLowerCase())) return `the API would get ${name}`
  }
  if (target.host !== 'api.example') return undefined
  return protectedReading(target.path)
}

/** As what some server may take this path for something that is protected; undefined: none that is known here. */
export function protectedReading(path: string): string | undefined {
  return readings(path).find((reading) => PROTECTED.test(reading))
}

/** Whether this header makes some server take another path, method or caller than the one that was decided about. */
export function misleads(name: string): boolean {
  const dashed = name.toLowerCase().replaceAll('_', '-')
  return dashed.startsWith('x-tollward-') || OVERRIDES.has(dashed)
}

/** The paths that servers of many kinds may take this one for. */
function readings(path: string): string[] {
  let paths = [path]
  for (const reading of READERS) paths = [...new Set([...paths, ...paths.map(reading)])]
  return paths
}

const READERS: readonly ((path: string) => string)[] = [
  (path) => path.replace(/;[^/]*/g, ''),
  decoded,
  decoded,
  (path) => path.replace(/[．․‥／⁄∕⧸＼∖⧵﹨]/g, (like) => LOOKALIKES[like] ?? like),
  (path) => path.split('\0')[0] ?? '',
  (path) => path.replaceAll('\\', '/'),
  (path) => path.replace(/\/{2,}/g, '/'),
  withoutDotSegments,
]

/** What conversion to a smaller character set (best fit, NFKC) makes of characters that look like others. */
const LOOKALIKES: Readonly<Record<string, string>> = {
  '．': '.',
  '․': '.',
  '‥': '..',
  '／': '/',
  '⁄': '/',
  '∕': '/',
  '⧸': '/',
  '＼': '\\',
  '∖': '\\',
  '⧵': '\\',
  '﹨': '\\',
}

/** Whatever can be decoded, the rest as it is; overlong forms and %u as lax servers read them. */
function decoded(path: string): string {
  return path
    .replace(/%u([0-9a-f]{4})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
    .replace(/%c0%(ae|af)/gi, (_, hex: string) => (hex.toLowerCase() === 'ae' ? '.' : '/'))
    .replace(/(?:%[0-9a-f]{2})+/gi, (run) => {
      try {
        return decodeURIComponent(run)
      } catch {
        return Buffer.from(run.replaceAll('%', ''), 'hex').toString('latin1')
      }
    })
}

function withoutDotSegments(path: string): string {
  const kept: string[] = []
  for (const segment of path.split('/')) {
    if (segment === '..') kept.pop()
    else if (segment !== '.') kept.push(segment)
  }
  return kept[0] === '' ? kept.join('/') : `/${kept.join('/')}`
}

const at = (...targets: readonly string[]): WireRequest[] => targets.map((target) => ({ target }))
const hosts = (...names: readonly string[]): WireRequest[] => names.map((host) => ({ host, target: '/admin/people' }))
const sent = (target: string, ...fields: readonly (readonly [string, string])[]): WireRequest[] =>
  fields.map((field) => ({ target, headers: [field] }))

/** Spellings of "go up" that some server understands. */
const UPWARDS = [
  '..',
  '.%2e',
  '%2e.',
  '%2e%2e',
  '%2E%2E',
  '.%2E',
  '%2E.',
  '%252e%252e',
  '%252E%252E',
  '.%252e',
  '%25252e%25252e',
  '%c0%ae%c0%ae',
  '%c0%2e%c0%2e',
  '%e0%80%ae%e0%80%ae',
  '%f0%80%80%ae%f0%80%80%ae',
  '%u002e%u002e',
  '%uff0e%uff0e',
  '%ef%bc%8e%ef%bc%8e',
  '%e2%80%a5',
  '%e2%80%a4%e2%80%a4',
  '..%00',
  '%00..',
  '..%09',
  '..%0a',
  '..%0d',
  '..;',
  '..;x=1',
  '.;./..',
  '%2e%2e;',
  '..%3b/..',
  '. .',
  '..\\',
  '\\..',
  '..%5c',
  '%5c..',
  '..%2f..',
  '..%ff',
] as const

/** Spellings of "/" that some server understands. */
const SLASHES = [
  '%2f',
  '%2F',
  '%252f',
  '%252F',
  '%25252f',
  '\\',
  '%5c',
  '%5C',
  '%255c',
  '%255C',
  '//',
  '/./',
  '///',
  '/%2e/',
  '/%2f/',
  '%c0%af',
  '%C0%AF',
  '%e0%80%af',
  '%f0%80%80%af',
  '%c1%9c',
  '%u2215',
  '%u2216',
  '%uefc8',
  '%ef%bc%8f',
  '%ef%bc%bc',
  '%00/',
  '/%00',
  ';/',
  '/;/',
  '/;x=1/',
  '%09/',
  '%0a/',
  '%0d%0a/',
  '/%20/..//',
] as const

/** Classes of which nothing at all may be admitted. The others may go on in a form that no reader takes for something protected. */
export const NEVER_ADMITTED: ReadonlySet<string> = new Set([
  'credentials (CVE-2021-32777)',
  'conditions with two values',
  'methods',
])

/** What two readers take for two things, by class; each class is named for what goes wrong. */
export const CONFUSING: Readonly<Record<string, readonly WireRequest[]>> = {
  'dot segments (CVE-2019-9901, GHSA-p224-6x5r-fjpm, CVE-2026-34908)': [
    ...at(...UPWARDS.map((up) => `/public/${up}/admin/people`)),
    ...at(...UPWARDS.map((up) => `/files/a/${up}/secret`)),
    ...at(
      '/public/../admin',
      '/public/x/../../admin',
      '/./admin',
      '/public/./../admin',
      '/../admin',
      '/public/.../../../admin',
    ),
    ...at(
      '/pictures/../admin/a.png',
      '/pictures/%2e%2e/admin/a.png',
      '/pictures/x/..%2f..%2fadmin/a.png',
      '/admin/../public',
      '/public/..',
    ),
  ],
  'slashes (CVE-2021-29492, CVE-2021-31920, commit 58c44d4ec)': [
    ...at(...SLASHES.map((slash) => `/public${slash}..${slash}admin`)),
    ...at(...SLASHES.map((slash) => `/files${slash}secret`)),
    ...at(
      '//admin/people',
      '///admin',
      '/\\admin',
      '\\admin',
      '\\/admin',
      '/%5cadmin',
      '/%2fadmin',
      '//api.example/admin',
      '/admin//',
      '/public//../admin',
    ),
    ...at('/files/secret//', '/files/secret/', '/files/secret/.'),
  ],
  'path parameters (CVE-2026-73511)': [
    ...at(
      '/public;/../admin',
      '/public/;/../admin',
      '/admin;x=1',
      '/admin;/people',
      '/;x/admin',
      '/public;jsessionid=1/..;/admin',
      '/files/secret;.png',
    ),
    ...at(
      '/files/secret;',
      '/files;a=b/secret',
      '/files/;a=b/secret',
      '/pictures/..;/admin/x.png',
      '/admin;.png',
      '/public/..;x/admin',
      '/;/admin',
      '/.;/admin',
    ),
  ],
  'encoding of plain characters': [
    ...at(
      '/%61dmin',
      '/%61%64%6d%69%6e',
      '/a%64min/people',
      '/%2561dmin',
      '/%25%36%31dmin',
      '/files/%73ecret',
      '/files/%73%65%63%72%65%74',
      '/files/s%65cret',
    ),
    ...at(
      '/files/%2573ecret',
      '/files/%252573ecret',
      '/files/secre%74',
      '/files/secre%2574',
      '/files/%u0073ecret',
      '/files/%c1%b3ecret',
      '/%c1%a1dmin',
      '/files/%53ECRET/../secret',
    ),
    ...at(
      '/public/%ef%bc%8e%ef%bc%8e%ef%bc%8fadmin',
      '/public%e2%88%95..%e2%88%95admin',
      '/public%e2%81%84%e2%80%a5%e2%81%84admin',
      '/public/x%e2%88%96..%e2%88%96..%e2%88%96admin',
    ),
  ],
  'ends that cut a path (CVE-2019-9900, CVE-2021-32779)': [
    ...at(
      '/admin%00',
      '/admin%00.png',
      '/files/secret%00',
      '/files/secret%00.png',
      '/pictures/..%00/admin.png',
      '/admin#',
      '/admin#/public',
      '/public#/../admin',
    ),
    ...at(
      '/files/secret#.png',
      '/admin\0',
      '/admin%0a',
      '/admin%0d%0a',
      '/admin\t',
      '/admin%09',
      '/files/secret%0a',
      '/files/secret%1a',
      '/files/secret%7f',
      '/admin%20HTTP/1.1',
    ),
    ...at(
      '/public?#/../admin',
      '/public#?/admin',
      '/public/%23/../../admin',
      '/files/secret%00?x',
      '/admin?',
      '/admin?/public',
      '/admin/?x=/public',
      '/files/secret?x=/files/a',
    ),
  ],
  'forms of the target': [
    ...at(
      'http://api.example/admin',
      'https://api.example/admin',
      'HTTP://API.EXAMPLE/admin',
      'http:/admin',
      'http:///admin',
      'http://open.example/admin',
      'api.example/admin',
    ),
    ...at(
      'api.example:443',
      '*',
      'admin',
      '',
      '?/admin',
      '#/admin',
      '@api.example/admin',
      ':443/admin',
      'file:///admin',
      '/http://api.example/../admin',
      'ws://api.example/admin',
    ),
  ],
  'malformed encoding': [
    ...at(
      '/%',
      '/admin%',
      '/%a',
      '/%zz/admin',
      '/%%61dmin',
      '/%2',
      '/public/%2/../admin',
      '/public/%g0/admin',
      '/public/%/../admin',
      '/files/%%73ecret',
      '/files/%7',
      '/%25%',
      '/files/%C3%28',
    ),
    ...at(
      '/files/%ff',
      '/files/%fe%fe',
      '/files/%ed%a0%80',
      '/files/%f4%90%80%80',
      '/files/%f8%88%80%80%80',
      '/files/%c3',
      '/files/%e2%82',
      '/files/\u00ff',
      '/files/\u0130',
    ),
  ],
  'host (GHSA-7774-7vr3-cc8j, GHSA-vhr5-ggp3-qq85)': [
    ...hosts(
      'API.EXAMPLE',
      'api.example.',
      'api.example:80',
      'api.example:443',
      'Api.Example.:8443',
      'api.example:',
      'open.example@api.example',
      'api.example@open.example',
    ),
    ...hosts(
      'api.example,open.example',
      'open.example,api.example',
      'open.example api.example',
      'open.example\tapi.example',
      'api.example#open.example',
      'api.example?open.example',
    ),
    ...hosts(
      'api.example/open.example',
      'open.example/api.example',
      'api.example\\open.example',
      'api.example%2eopen.example',
      'api.example%00.open.example',
      'api.example..open.example',
    ),
    ...hosts(
      '.api.example',
      'api..example',
      'api.example..',
      'api\u3002example',
      'api.example:x',
      'api.example:443:80',
      'api.example:99999x',
      '[api.example]',
      '[::1',
      '::1',
      '[::1%25lo]',
    ),
    ...hosts(
      'http://api.example',
      '//api.example',
      'open.example:80@api.example',
      'open.example;api.example',
      'api.example;open.example',
      'api.example\r\nx: y',
      "api.example'",
      '*',
      '*.open.example',
    ),
    ...hosts(
      '',
      ' ',
      'api.example ',
      ' api.example',
      '\u00e4pi.example',
      '0x7f000001',
      `${'a.'.repeat(127)}open.example`,
    ),
  ],
  'headers that name another request (CVE-2026-40575, CVE-2026-35051)': [
    ...sent(
      '/public',
      ['x-original-url', '/admin'],
      ['X-Original-URL', '/admin'],
      ['x-rewrite-url', '/admin'],
      ['X-Rewrite-Url', '/files/secret'],
      ['x-original-uri', '/admin'],
    ),
    ...sent(
      '/items',
      ['x-http-method-override', 'DELETE'],
      ['X-HTTP-Method-Override', 'DELETE'],
      ['x-http-method', 'DELETE'],
      ['x-method-override', 'PUT'],
      ['X_HTTP_METHOD_OVERRIDE', 'DELETE'],
      ['x_original_url', '/admin'],
    ),
    ...sent(
      '/admin',
      ['x-forwarded-uri', '/public'],
      ['x-forwarded-path', '/public'],
      ['x-forwarded-prefix', '/public'],
      ['x-forwarded-host', 'open.example'],
      ['forwarded', 'host=open.example;proto=https'],
    ),
    ...sent(
      '/admin',
      ['x-forwarded-method', 'OPTIONS'],
      ['x-forwarded-for', '127.0.0.1'],
      ['x-real-ip', '127.0.0.1'],
      ['true-client-ip', '::1'],
      ['x-envoy-original-path', '/public'],
      ['x-host', 'open.example'],
      ['x-forwarded-server', 'open.example'],
      ['x-auth-request-redirect', '/public'],
    ),
  ],
  'identity of others': [
    ...sent(
      '/public',
      ['x-tollward-client', 'admin'],
      ['X-Tollward-Client', 'admin'],
      ['x_tollward_client', 'admin'],
      ['x-tollward_client', 'admin'],
      ['X_TOLLWARD-CLIENT', 'admin'],
      ['x-tollward-subject', 'root'],
    ),
    ...sent(
      '/public',
      ['x-tollward-scopes', 'admin'],
      ['x-tollward-pass', 'free'],
      ['x-tollward-decision', 'mine'],
      ['x-tollward-anything', '1'],
      ['X_Tollward_Pass', 'free'],
      ['connection', 'authorization'],
    ),
    ...sent(
      '/public',
      ['connection', 'x-tollward-client'],
      ['connection', 'close, X-Tollward-Pass'],
      ['Connection', 'x_tollward_client'],
      ['connection', 'x-bitcoin-txid'],
    ),
    ...sent(
      '/admin',
      ['x-tollward-client', 'admin'],
      ['x-tollward-scopes', 'admin'],
      ['x-authenticated-user', 'admin'],
      ['remote-user', 'admin'],
      ['x-user', 'admin'],
      ['x-forwarded-user', 'admin'],
      ['x-forwarded-client-cert', 'URI=spiffe://x/ns/admin/sa/a'],
    ),
  ],
  'credentials (CVE-2021-32777)': [
    ...sent(
      '/admin',
      ['authorization', 'Bearer'],
      ['authorization', 'Bearer '],
      ['authorization', 'bearer x'],
      ['authorization', 'Bearer x y'],
      ['authorization', 'Bearer x,Bearer y'],
      ['authorization', 'Bearer x, y'],
    ),
    ...sent(
      '/admin',
      ['authorization', 'Basic YWRtaW46YWRtaW4='],
      ['authorization', 'Basic YTpi, Bearer x'],
      ['authorization', 'Digest a="b", Bearer x'],
      ['authorization', 'Negotiate x'],
      ['authorization', '\tBearer x'],
    ),
    ...sent(
      '/admin',
      ['authorization', 'Bearer\tx'],
      ['authorization', 'Bearer %00'],
      ['authorization', 'Bearer null'],
      ['authorization', 'Bearer undefined'],
      ['authorization', 'Bearer eyJhbGciOiJub25lIn0.e30.'],
      ['authorization', `Bearer ${'a'.repeat(5000)}`],
    ),
    ...sent(
      '/admin',
      ['proxy-authorization', 'Bearer x'],
      ['cookie', 'authorization=Bearer x'],
      ['x-authorization', 'Bearer x'],
      ['authorization_', 'Bearer x'],
      ['x-bitcoin-txid', 'a'.repeat(64)],
      ['x-bitcoin-txid', 'zz'],
      ['dpop', 'x'],
    ),
    {
      target: '/admin',
      headers: [
        ['authorization', 'Bearer a'],
        ['authorization', 'Bearer b'],
      ],
    },
    {
      target: '/admin',
      headers: [
        ['authorization', 'Basic a'],
        ['Authorization', 'Bearer b'],
      ],
    },
    {
      target: '/public',
      headers: [
        ['x-bitcoin-txid', 'a'.repeat(64)],
        ['x-bitcoin-txid', 'b'.repeat(64)],
      ],
    },
    { target: '/admin?access_token=x' },
    { target: '/admin?authorization=Bearer%20x' },
  ],
  'conditions with two values': [
    {
      target: '/tenant',
      headers: [
        ['x-tenant', 'open'],
        ['x-tenant', 'closed'],
      ],
    },
    {
      target: '/tenant',
      headers: [
        ['x-tenant', 'closed'],
        ['X-Tenant', 'open'],
      ],
    },
    { target: '/tenant', headers: [['x-tenant', 'open,closed']] },
    {
      target: '/tenant',
      headers: [
        ['x-tenant', 'open '],
        ['x_tenant', 'closed'],
      ],
    },
    { target: '/tenant', headers: [['x_tenant', 'open']] },
    { target: '/tenant', headers: [['x-tenant', 'OPEN']] },
    ...at(
      '/report?kind=summary&kind=full',
      '/report?kind=full&kind=summary',
      '/report?kind=full;kind=summary',
      '/report?kind=summar%79&kind=full',
      '/report?k%69nd=full&kind=summary',
    ),
    ...at(
      '/report?kind=summary%26kind=full',
      '/report?kind%5B%5D=summary',
      '/report?KIND=summary',
      '/report?kind',
      '/report?kind=',
      '/report?kind=summary%00',
      '/report?kind=summary%',
      '/report#kind=summary',
    ),
  ],
  methods: [
    { method: 'get', target: '/items' },
    { method: 'DELETE', target: '/items' },
    { method: 'PUT', target: '/items' },
    { method: 'PATCH', target: '/items?_method=GET' },
    { method: 'GETX', target: '/items' },
    { method: 'TRACE', target: '/items' },
    { method: 'PROPFIND', target: '/items' },
    { method: 'GET ', target: '/admin' },
    { method: 'GET\t/public', target: '/admin' },
    { method: 'OPTIONS', target: '/admin' },
    { method: 'HEAD', target: '/admin' },
    { method: 'POST', target: '/' },
    { method: 'M-SEARCH', target: '/admin' },
    { method: 'PRI', target: '*' },
  ],
}

const plain = (...targets: readonly string[]): WireRequest[] => targets.map((target) => ({ target }))
const under = (...tails: readonly string[]): WireRequest[] => tails.map((tail) => ({ target: `/public/${tail}` }))
const withHeader = (...fields: readonly (readonly [string, string])[]): WireRequest[] =>
  fields.map((field) => ({ target: '/public', headers: [field] }))

/** Requests that look odd and are not: each is admitted. */
export const ORDINARY: readonly WireRequest[] = [
  ...plain(
    '/',
    '/?',
    '/?q',
    '/?=',
    '/?&&',
    '/public',
    '/public/',
    '/public?',
    '/files/a',
    '/files/-',
    '/files/_',
    '/files/~',
    '/files/a.b.c',
    '/files/.env',
    '/files/..a',
    '/files/a..',
    '/files/...',
  ),
  ...plain(
    '/files/a...b',
    '/files/.well-known',
    '/files/a%20b',
    '/files/a+b',
    '/files/a@b',
    '/files/a:b',
    '/files/a=b',
    '/files/a,b',
    "/files/a'b",
    '/files/a(b)',
    '/files/a*b',
    '/files/a!b',
    '/files/a$b',
    '/files/a&b',
  ),
  ...plain(
    '/files/%7Ejoe',
    '/files/%41',
    '/files/%2D',
    '/files/%5F',
    '/files/%2Epng',
    '/files/a%2Eb',
    '/files/100%25',
    '/files/100%25-off',
    '/files/5%25%20of%20it',
    '/files/%25',
    '/files/a%3Db',
    '/files/a%26b',
  ),
  ...plain(
    '/files/C%23',
    '/files/Who%3F',
    '/files/a%22b',
    '/files/a%3Cb%3E',
    '/files/a%7Cb',
    '/files/a%5Eb',
    '/files/a%60b',
    '/files/%7Bid%7D',
    '/files/a%5B0%5D',
    '/files/[0]',
    '/files/a|b',
    '/files/a^b',
    '/files/secrets',
    '/files/secre',
  ),
  ...plain(
    '/files/Secret',
    '/files/SECRET',
    '/files/secret.png',
    '/files/secret-',
    '/files/%C3%A9t%C3%A9',
    '/files/%E6%97%A5%E6%9C%AC',
    '/files/%F0%9F%98%80',
    '/files/%E2%80%A6',
    '/files/na%C3%AFve',
    '/files/%C2%A0',
    '/files/%D7%A9%D7%9C%D7%95%D7%9D',
  ),
  ...plain(
    '/files/00000000-0000-0000-0000-000000000000',
    '/files/urn:isbn:0451450523',
    '/files/2026-11-21T00:00:00Z',
    '/files/dXNlcg==',
    '/files/a--b__c',
    '/files/1e9',
    '/files/NaN',
    '/files/null',
    '/files/undefined',
    '/files/true',
  ),
  ...plain(
    '/pictures/a.png',
    '/pictures/a/b/c.png',
    '/pictures/.png',
    '/pictures/a.b.png',
    '/pictures/a%20b.png',
    '/pictures/x/%C3%A9.png',
    '/report?kind=summary',
    '/report?a=1&kind=summary',
    '/report?kind=summar%79',
    '/report?kind=summary&b=kind',
  ),
  ...under(
    'admin',
    'admin/people',
    'files/secret',
    'x/admin',
    'a/b/c/d/e/f/g/h',
    'index.html',
    'v1.2.3',
    'a-very-long-name-'.repeat(20),
    '1',
    '0',
    '-1',
    '1.5',
    '.hidden',
    'x.tar.gz',
    'a,b,c',
    'lat=1,lng=2',
    '@user',
    '~user',
  ),
  ...under(
    '(odata)',
    "Products('1')",
    'Products(1)',
    '$metadata',
    '$batch',
    '*',
    '!',
    'a:b',
    'search:advanced',
    'a=1&b=2',
    '+1-555',
    'x%20y%20z',
    'CON',
    'aux.txt',
    'a.',
    'Mr.',
    '%20',
    '%20a',
    'a%20',
    'Thumbs.db',
    'web.config',
  ),
  ...under(
    'a/',
    'a/b/',
    '?',
    '?a',
    '?a=',
    '?=a',
    '?a=b',
    '?a=b&a=c',
    '?a[]=1&a[]=2',
    '?a%5B%5D=1',
    '?filter={"a":1}',
    '?q=a+b',
    '?q=a%20b',
    '?q=%2F..%2F',
    '?q=../..',
    '?q=//',
    '?u=http://x/y?z',
    '?q=100%',
    '?q=%zz',
  ),
  ...under(
    '?q=%00',
    '?q=%0d%0a',
    '?q=;',
    '?a=1;b=2',
    '?q=\\',
    '?q=|',
    '?q=^',
    '?q=`',
    "?q='",
    '?q="',
    '?q=<x>',
    '?q=[0]',
    '?q={x}',
    '?q=a@b',
    '?q=a:b',
    '?q=~',
    '?q=!',
    '?q=*',
    '?q=(x)',
    '?q=$x',
    '?q=,',
    '?q==',
    '?q=?',
    '?q=/',
    `?q=${'x'.repeat(4000)}`,
  ),
  ...withHeader(
    ['cookie', 'a=b; c=d'],
    ['cookie', ''],
    ['accept', '*/*'],
    ['accept-language', 'de-CH;q=0.9, *;q=0.1'],
    ['user-agent', ''],
    ['user-agent', '() { :;}; echo'],
    ['referer', 'http://api.example/admin'],
    ['origin', 'null'],
    ['x-empty', ''],
  ),
  ...withHeader(
    ['authorization', 'Basic YTpi'],
    ['authorization', 'Digest username="a", realm="b", nonce="c"'],
    ['authorization', 'AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c'],
    ['authorization', ''],
    ['authorization', 'Bearer whatever'],
    ['authorization', 'Negotiate YII='],
  ),
  ...withHeader(
    ['connection', 'close'],
    ['connection', 'close, x-own'],
    ['x-forwarded-for', '1.2.3.4, 5.6.7.8'],
    ['x-forwarded-proto', 'http'],
    ['via', '1.1 a, 1.1 b'],
    ['range', 'bytes=0-0,-1'],
    ['if-none-match', '"a", W/"b"'],
    ['x_under_score', 'fine'],
    ['content-type', ''],
  ),
  ...withHeader(
    ['x-tollwarden', 'not ours'],
    ['x-custom', '\u00e9'],
    ['x-long', 'a'.repeat(8000)],
    ['x-json', '{"a":[1,2]}'],
    ['x-comma', 'a,,b,'],
    ['x-quote', '"a\\"b"'],
    ['traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'],
  ),
  ...[
    ['API.example', '/public'],
    ['api.example:8080', '/public'],
    ['api.example.', '/public'],
    ['open.example', '/admin'],
    ['a.b.open.example', '/admin'],
    ['OPEN.EXAMPLE:443', '/files/secret'],
    ['xn--bcher-kva.open.example', '/'],
    ['my_host.open.example', '/'],
    ['1.open.example', '/'],
  ].map(([host = '', target = '']) => ({ host, target })),
  { method: 'HEAD', target: '/items' },
  { method: 'POST', target: '/items' },
  { method: 'OPTIONS', target: '/items' },
  { method: 'DELETE', target: '/public/x' },
  { method: 'PATCH', target: '/public/x' },
  { target: '/tenant', headers: [['x-tenant', 'open']] },
  { target: '/tenant', headers: [['X-TENANT', 'open']] },
]
