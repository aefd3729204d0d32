import { readFile } from 'node:fs/promises'
import { AppError } from '@tollward/errors'

/** Text of a file. AppError `invalid_argument` if there is none. */
export async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    throw new AppError('invalid_argument', `${file} cannot be read.`, { cause: error })
  }
}
