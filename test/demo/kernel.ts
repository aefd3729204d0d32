import assert from 'node:assert/strict'
import { tryPort } from '../scenario/attack.ts'
import { type Customer, LOCAL } from '../scenario/customer.ts'
import { type Tour, until } from './tour.ts'

const EXAMPLE_API_PORT = 8081
/** An address that only the rule is about, and one beside it. */
const SHUT_OUT = '127.0.0.77'
const BESIDE = '127.0.0.78'
const NAME = 'tour'

const RULE = `apiVersion: tollward.dev/v1
kind: KernelRule
metadata: { name: ${NAME} }
spec: { direction: ingress, protocol: tcp, sources: [${SHUT_OUT}/32], ports: [${EXAMPLE_API_PORT}], action: drop, ttl: 5m }
`

interface Sensor {
  readonly node: string
  readonly state: string
  readonly interfaces: readonly { readonly name: string; readonly ingress: string; readonly egress: string }[]
  readonly capabilities: readonly { readonly name: string; readonly on: boolean; readonly why: string }[]
  readonly programs: readonly { readonly name: string; readonly averageNanos?: number }[]
  readonly rules: readonly { readonly name: string; readonly dropped: number }[]
}

interface Endpoint {
  readonly host: string
  readonly method: string
  readonly path: string
  readonly calls: number
  readonly credentials: readonly string[]
}

/** What the sensor offers, a rule of the kernel's own, and the calls that it read. */
export async function watchTheNode(tour: Tour, customer: Customer): Promise<void> {
  await tour.step(
    'The sensor says how it is: where it hangs, what this kernel offers, what each packet costs',
    async () => {
      const sensor = await until('the sensor to have said it', () => sensorOf(tour))
      for (const { name, ingress, egress } of sensor.interfaces) tour.say(`${name}: ${ingress} in, ${egress} out`)
      const off = sensor.capabilities.filter(({ on }) => !on)
      tour.say(`${sensor.capabilities.length - off.length} of ${sensor.capabilities.length} capabilities are on`)
      for (const { name, why } of off) tour.say(`without ${name}: ${why}`)
      const cost = sensor.programs.flatMap(({ name, averageNanos }) =>
        averageNanos === undefined ? [] : [`${name} ${averageNanos} ns`],
      )
      tour.say(cost.join(', '))
      assert.notEqual(sensor.state, 'silent')
      assert.ok(sensor.interfaces.every(({ ingress, egress }) => ingress !== '' && egress !== ''))
    },
  )

  await tour.step(
    `A rule for the kernel: TCP from ${SHUT_OUT} to port ${EXAMPLE_API_PORT} is dropped, and nothing else`,
    async () => {
      await tour.tollward(['delete', 'KernelRule', NAME]).catch(() => undefined)
      await until('a connection', () => tryPort(SHUT_OUT, '127.0.0.1', EXAMPLE_API_PORT))
      await tour.tollward(['apply', '-f', '-'], RULE)
      await until('silence', async () => !(await tryPort(SHUT_OUT, '127.0.0.1', EXAMPLE_API_PORT)))
      assert.equal(await tryPort(BESIDE, '127.0.0.1', EXAMPLE_API_PORT), true, 'its neighbour was harmed')
      const rule = await until('the rule to count', async () => {
        const found = (await sensorOf(tour))?.rules.find(({ name }) => name === NAME)
        return found && found.dropped > 0 && found
      })
      tour.say(`the rule dropped ${rule.dropped} packets`)
      await tour.tollward(['delete', 'KernelRule', NAME])
      await until('a connection', () => tryPort(SHUT_OUT, '127.0.0.1', EXAMPLE_API_PORT))
    },
  )

  await tour.step(
    'API calls, read in the kernel: what was asked and answered, and with what kind of credential',
    async () => {
      await until('the calls to be told', async () => {
        assert.equal((await customer.quiet().call(`${LOCAL.gateway}/orders`)).status, 200)
        const endpoints = await tour.tollward<Endpoint[]>(['apis'])
        const orders = endpoints.find(({ method, path }) => method === 'GET' && path === '/orders')
        if (!orders) return false
        for (const { method, host, path, calls, credentials } of endpoints) {
          tour.say(`${method} ${host}${path}: ${calls} calls; ${credentials.join(', ') || 'no credential'}`)
        }
        return orders.credentials.includes('bearer')
      })
    },
  )
}

async function sensorOf(tour: Tour): Promise<Sensor | undefined> {
  return await tour.tollward<Sensor>(['sensors', 'show', 'local']).catch(() => undefined)
}
