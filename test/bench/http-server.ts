import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'
import { acquireNginx } from '@tollward/acquire'
import {
  eventually,
  freePort,
  type NatsServer,
  type Service,
  startProcess,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { selfSigned } from '../scenario/certificates.ts'
import { GENERATOR_CORE, moveTo, SERVER_CORE } from './cores.ts'
import { load, type Target } from './http-load.ts'

/** In a network of its own, every port is free. */
export const HTTP_PORT = 8080
export const HTTPS_PORT = 8443

/** Starts an nginx that answers every request on both ports from memory, and returns its process when `target` has its answer. */
export async function startNginx(stack: AsyncDisposableStack, target: Target): Promise<number> {
  const { path } = stack.use(await temporaryDirectory('http-server'))
  const file = join(path, 'nginx.conf')
  const { cert, key } = await selfSigned('CN=127.0.0.1')
  writeFileSync(join(path, 'certificate.pem'), cert)
  writeFileSync(join(path, 'key.pem'), key, { mode: 0o600 })
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((what) => `${what}_temp_path ${path};`)
  writeFileSync(
    file,
    `daemon off; master_process off; pid ${path}/pid; worker_processes 1; events { worker_connections 256; }
http {
  access_log off; keepalive_requests 1000000000; ${temporary.join(' ')}
  server {
    listen 127.0.0.1:${HTTP_PORT}; listen 127.0.0.1:${HTTPS_PORT} ssl;
    ssl_certificate ${path}/certificate.pem; ssl_certificate_key ${path}/key.pem;
    location / { default_type text/plain; return 200 "hello\\n"; }
  }
}
`,
  )
  const { command, args } = await acquireNginx()
  const running = stack.use(await startProcess(command, [...args, '-p', path, '-c', file, '-e', 'stderr']))
  await eventually(() => load(target, 1, 1).then(() => true), { what: 'nginx answers' })
  return running.pid
}

/** Does something while a sensor watches the loopback device; then nothing of the sensor is left in the kernel. */
export async function withSensor<T>(
  { url }: NatsServer,
  settings: NodeJS.ProcessEnv,
  work: (sensor: Service) => Promise<T>,
): Promise<T> {
  const env = { PATH: process.env.PATH, TOLLWARD_PIN_DIRECTORY: '/sys/fs/bpf/tollward-bench-http' }
  moveTo(SERVER_CORE)
  const sensor = await startService('node-sensor', {
    ...env,
    TOLLWARD_NATS_URL: url,
    TOLLWARD_HEALTH_PORT: String(await freePort()),
    TOLLWARD_INTERFACES: 'lo',
    ...settings,
  })
  moveTo(GENERATOR_CORE)
  try {
    return await work(sensor)
  } finally {
    await sensor.stop()
    execFileSync(process.execPath, [join(ROOT, 'services/node-sensor/src/main.ts'), 'detach'], { env, stdio: 'ignore' })
  }
}
