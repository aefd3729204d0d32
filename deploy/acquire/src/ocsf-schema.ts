import { unpackWheel } from './python-wheel.ts'
import { type AcquireOptions, type Acquisition, acquisition, privateCopy, run, type Tool } from './tool.ts'

/** The Python wheel that holds the published OCSF schema, and writes its classes as JSON Schema. */
const VERSION = '1.2.0'
const WHEEL = `ocsf-json-schema==${VERSION}`

/** Prints the JSON Schema (draft 2020-12) of a class: its uid, OCSF's version, and profiles separated by commas. */
const PRINT_CLASS = `
import json, sys
sys.path.insert(0, '{folder}')
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
uid, version, profiles = sys.argv[1:]
schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=version))
name = schema.lookup_class_name_from_uid(int(uid))
print(json.dumps(schema.get_class_schema(class_name=name, profiles=profiles.split(','))))
`

/**
 * How to print the JSON Schema of an OCSF class, for tests: arguments are the class uid, the version of OCSF, and profiles.
 * Throws AcquireError if it cannot be had.
 */
export async function acquireOcsfSchema(options: AcquireOptions = {}): Promise<Tool> {
  const wanted = acquisition(options)
  return await privateCopy(wanted, 'ocsf-schema', (folder) => fromWheel(options, wanted, folder))
}

async function fromWheel(options: AcquireOptions, wanted: Acquisition, folder: string): Promise<Tool> {
  const command = await unpackWheel(options, wanted, WHEEL, folder)
  const program = ['-c', PRINT_CLASS.replace('{folder}', folder)]
  await run(command, [...program, '2004', '1.8.0', 'security_control'])
  return { command, args: ['-c', PRINT_CLASS], version: VERSION, from: 'Python wheel' }
}
