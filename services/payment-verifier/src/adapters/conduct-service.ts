import type { Implementation } from '@tollward/bus'
import type { Conduct, ConductService } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { decayed, SCORE_MAX, type Score, scoreOf, settledSatsOf, sinceOf, timeOf } from '../domain/conduct.ts'
import type { Ledger } from '../domain/ledger.ts'
import type { Conducts } from './conducts.ts'

const LIST_DEFAULT = 100
const LIST_MAX = 1_000
const REASON_CHARACTERS_MAX = 500
const CLIENT_ID_CHARACTERS_MAX = 255

export interface ConductOptions {
  readonly conducts: Conducts
  readonly ledger: Ledger
  readonly tipHeight: () => number
}

/** What operators ask about the conduct of clients, and tell. */
export function conductService(options: ConductOptions): Implementation<typeof ConductService> {
  const { conducts } = options
  return {
    listConduct: async ({ clientId, limit }) => {
      const of = clientId === '' ? [...conducts.all()] : [conducts.of(clientId)].filter((known) => known !== undefined)
      const nowMs = Date.now()
      // The worst first: those are whom an operator looks for.
      const worst = of
        .map((conduct) => ({ conduct, score: scoreNow(conduct, options, nowMs).score }))
        .toSorted((one, other) => one.score - other.score)
        .slice(0, Math.min(limit === 0 ? LIST_DEFAULT : limit, LIST_MAX))
      return { standings: worst.map(({ conduct }) => standingOf(conduct, options, nowMs)) }
    },
    overrideConduct: async ({ clientId, score, until, reason, operator }) => {
      if (clientId === '' || clientId.length > CLIENT_ID_CHARACTERS_MAX) throw invalid('Say which client.')
      if (operator === '') throw invalid('Say which operator decides.')
      const nowMs = Date.now()
      if (score === undefined) {
        return { standing: standingOf(await conducts.override(clientId, undefined), options, nowMs) }
      }
      if (score > SCORE_MAX) throw invalid(`A score is 0 to ${SCORE_MAX}.`)
      if (reason === '' || reason.length > REASON_CHARACTERS_MAX)
        throw invalid(`Give a reason, of at most ${REASON_CHARACTERS_MAX} characters.`)
      if (until !== undefined && timeOf(until) <= nowMs)
        throw invalid('The end of an override has to be in the future.')
      const word = { score, reason, operator, ...(until && { until }) }
      return { standing: standingOf(await conducts.override(clientId, word), options, nowMs) }
    },
  }
}

function standingOf(conduct: Conduct, options: ConductOptions, nowMs: number) {
  const { score, reasons } = scoreNow(conduct, options, nowMs)
  const paidSats = settledSatsOf(options.ledger.invoicesOf(conduct.clientId), options.tipHeight())
  return { conduct: { ...decayed(conduct, nowMs), paidSats }, score, reasons: [...reasons] }
}

function scoreNow(conduct: Conduct, { ledger }: ConductOptions, nowMs: number): Score {
  return scoreOf(conduct, sinceOf(conduct, ledger.invoicesOf(conduct.clientId), nowMs), nowMs)
}

function invalid(message: string): AppError {
  return new AppError('invalid_argument', message)
}
