import { Command, CommanderError } from 'commander'
import { AnswerIsNo } from './answer.ts'
import { addApiCommands } from './commands/apis.ts'
import { addBackupCommands } from './commands/backups.ts'
import { addClientCommands } from './commands/clients.ts'
import { addConductCommands } from './commands/conduct.ts'
import { addDefenceCommands } from './commands/defence.ts'
import { addDocumentCommands } from './commands/documents.ts'
import { addObservationCommands } from './commands/observations.ts'
import { addPaymentCommands } from './commands/payments.ts'
import { addPeopleCommands } from './commands/people.ts'
import { addPolicyCommands } from './commands/policies.ts'
import { addSensorCommands } from './commands/sensors.ts'
import { addStatusCommand } from './commands/status.ts'
import { addTokenCommands } from './commands/tokens.ts'
import { addTreasuryCommands } from './commands/treasury.ts'
import { type Surroundings, sentenceOf } from './session.ts'

/** Runs one command and returns the exit code: 0 done, 1 not done, with one sentence on the error output. */
export async function runCommand(argv: readonly string[], surroundings: Surroundings): Promise<number> {
  const program = new Command('tollward')
    .description('Operates Tollward: documents, clients, people, tokens, payments, passes, blocks, alerts.')
    .exitOverride()
    .configureOutput({
      writeOut: surroundings.out,
      writeErr: surroundings.err,
      // One argument too many may be a password.
      outputError: (text, write) => write(text.replace(/^(error: too many arguments .*? but got \d+): .*$/m, '$1.')),
    })
    .showHelpAfterError('("npx --no tollward help" shows what there is)')
  addStatusCommand(program, surroundings)
  addDocumentCommands(program, surroundings)
  addPolicyCommands(program, surroundings)
  addClientCommands(program, surroundings)
  addTokenCommands(program, surroundings)
  addPeopleCommands(program, surroundings)
  addPaymentCommands(program, surroundings)
  addTreasuryCommands(program, surroundings)
  addConductCommands(program, surroundings)
  addBackupCommands(program, surroundings)
  addDefenceCommands(program, surroundings)
  addObservationCommands(program, surroundings)
  addSensorCommands(program, surroundings)
  addApiCommands(program, surroundings)
  try {
    await program.parseAsync(argv, { from: 'user' })
    return 0
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode
    if (surroundings.signal.aborted) return 130
    if (!(error instanceof AnswerIsNo)) surroundings.err(`tollward: ${sentenceOf(error)}\n`)
    return 1
  }
}
