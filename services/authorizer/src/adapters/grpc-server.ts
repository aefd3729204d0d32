import { ReflectionService } from '@grpc/reflection'
import type { AddressRange } from '@tollward/contracts'
import { Authorization, RateLimitService } from '@tollward/contracts/envoy'
import { reflectionPackage } from '@tollward/contracts/grpc'
import type { Decider, Decision } from '@tollward/decision'
import { HealthImplementation } from 'grpc-health-check'
import type { Logger } from 'pino'
import { checkAnswer, checkFacts, isGrpcQuestion } from '../domain/check.ts'
import { type CheckQuestion, readCheckRequest } from '../domain/check-request.ts'
import { writeCheckResponse } from '../domain/check-response.ts'
import type { AuthorizerMetrics } from '../metrics.ts'
import type { UnaryMethod } from './grpc-calls.ts'
import { libraryMethods } from './grpc-library.ts'
import { type GrpcAddress, type ListeningServer, startGrpcTransport } from './grpc-transport.ts'
import { rateLimitMethod } from './rate-limit-method.ts'

export interface GrpcServerOptions {
  readonly at: GrpcAddress
  readonly trustedProxies: readonly AddressRange[]
  readonly decider: Decider
  readonly notReady: () => string | undefined
  readonly metrics: AuthorizerMetrics
  readonly log: Logger
}

const HEALTH_EVERY_MS = 500

/** Serves envoy.service.auth.v3.Authorization/Check and RateLimitService/ShouldRateLimit, with health and reflection. Every Check ends with gRPC status OK. */
export async function startGrpcServer(options: GrpcServerOptions): Promise<ListeningServer> {
  const { at, notReady, metrics, log } = options
  await using resources = new AsyncDisposableStack()
  const services = [Authorization, RateLimitService]
  const health = new HealthImplementation({})
  const tellHealth = () => {
    const status = notReady() === undefined ? 'SERVING' : 'NOT_SERVING'
    for (const service of ['', ...services.map(({ typeName }) => typeName)]) health.setStatus(service, status)
  }
  tellHealth()
  const timer = setInterval(tellHealth, HEALTH_EVERY_MS)
  resources.defer(() => clearInterval(timer))
  const methods = [
    checkMethod(options),
    rateLimitMethod(options.decider, metrics),
    ...libraryMethods((server) => health.addToServer(server)),
    ...libraryMethods((server) => new ReflectionService(reflectionPackage(services)).addToServer(server)),
  ]
  const failed = ({ code }: { code: number }) => metrics.failedCalls.inc({ code: String(code) })
  const { connectionFaults: faults, tlsReloads } = metrics
  const server = resources.use(await startGrpcTransport({ at, methods, failed, faults, tlsReloads, log }))
  const owned = resources.move()
  return { port: server.port, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

/** Answers one question. Whatever goes wrong on the way is a refusal: an error would be one that a proxy may admit on. */
function checkMethod({ decider, trustedProxies, metrics, log }: GrpcServerOptions): UnaryMethod {
  const asked = metrics.requests.labels('grpc')
  const decide = (question: CheckQuestion | undefined): Decision | Promise<Decision> => {
    const facts = question && checkFacts(question, trustedProxies)
    if (facts) return decider.decide(facts)
    metrics.undecidable.inc({ protocol: 'grpc' })
    return decider.refuse('malformed-request')
  }
  return {
    path: `/${Authorization.typeName}/${Authorization.method.check.name}`,
    // As long as the client's body: it must not be the client's choice whether we fail.
    tooLarge: () => {
      asked.inc()
      metrics.undecidable.inc({ protocol: 'grpc' })
      return writeCheckResponse(checkAnswer(decider.refuse('body-too-large'), false))
    },
    handle: (bytes) => {
      asked.inc()
      let isGrpc = false
      const answer = (decision: Decision) => writeCheckResponse(checkAnswer(decision, isGrpc))
      const failed = (error: unknown) => {
        log.error({ err: error }, 'check failed')
        return answer(decider.refuse('unavailable'))
      }
      try {
        const question = readCheckRequest(bytes)
        isGrpc = question !== undefined && isGrpcQuestion(question)
        const decision = decide(question)
        return decision instanceof Promise ? decision.then(answer).catch(failed) : answer(decision)
      } catch (error) {
        return failed(error)
      }
    },
  }
}
