import { AppError } from '@tollward/errors'
import { readConfig } from '@tollward/runtime'
import { z } from 'zod'
import { whatIsMissing } from './adapters/object-file.ts'
import { removeEverything } from './adapters/pins.ts'
import { objectAndPins } from './config.ts'

/** What the process has to say, and its exit code. */
export interface Answer {
  readonly code: number
  readonly text: string
}

type Environment = Readonly<Record<string, string | undefined>>

/** Also of a sensor that lacks something: as with a wrong configuration, starting it again does not help. */
const WRONG_USE = 2
const CANNOT_RUN = 3

/**
 * Answers a command. `check`: whether this machine can run the sensor (0), else (3) a sentence that says what it lacks; changes
 * nothing. `detach`: takes the programs off their hooks, and everything else away that a sensor left in the kernel, and says
 * what that was. None: 0 if the sensor can run.
 */
export async function answer(command: string | undefined, environment: Environment): Promise<Answer> {
  try {
    const { bpfObject, pinDirectory } = settings(environment)
    if (command === 'detach') return { code: 0, text: await removeEverything(pinDirectory) }
    if (command !== undefined && command !== 'check')
      return { code: WRONG_USE, text: 'The commands are check and detach; without one the sensor runs.' }
    const missing = await whatIsMissing(bpfObject)
    if (missing.length === 0) return { code: 0, text: '' }
    return { code: command === 'check' ? CANNOT_RUN : WRONG_USE, text: `it needs ${missing.join('; it needs ')}` }
  } catch (error) {
    if (error instanceof AppError) return { code: WRONG_USE, text: error.message }
    throw error
  }
}

/** The commands look at nothing else, so that a wrong setting of something else cannot keep programs on their hooks. */
function settings({ TOLLWARD_BPF_OBJECT, TOLLWARD_PIN_DIRECTORY }: Environment) {
  return readConfig(z.strictObject(objectAndPins), { TOLLWARD_BPF_OBJECT, TOLLWARD_PIN_DIRECTORY })
}
