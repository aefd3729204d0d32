/** A path with more segments is cut: it is no endpoint that anybody wrote. */
const SEGMENTS_MAX = 16
const PATH_LENGTH_MAX = 256

/** First match wins. What is none of these is a word of the API. */
const TYPES: readonly (readonly [name: string, form: RegExp])[] = [
  ['{int}', /^-?\d{1,20}$/],
  ['{uuid}', /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i],
  ['{date}', /^\d{4}-\d{2}-\d{2}(?:T[\d:.Z+-]{4,24})?$/],
  ['{ulid}', /^[0-7][0-9A-HJKMNP-TV-Z]{25}$/],
  // A hash, an object id: letters and digits, or it could be a word.
  ['{hex}', /^(?=.*\d)(?=.*[a-f])[0-9a-f]{12,128}$/i],
  ['{ip}', /^\d{1,3}(?:\.\d{1,3}){3}$/],
  ['{number}', /^-?\d{1,20}\.\d{1,20}$/],
  // An opaque id: long, with several digits among letters.
  ['{id}', /^(?=(?:.*\d){3})(?=.*[A-Za-z])[A-Za-z0-9_-]{16,}$/],
  ['{id}', /^(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9_=.~-]{40,}$/],
]

/** A path with the segments that differ from call to call as their type, such as /orders/{int}. */
export function templateOf(path: string): string {
  const segments = path.split('/')
  const kept = segments.slice(0, SEGMENTS_MAX).map(typed)
  const template = (segments.length > SEGMENTS_MAX ? [...kept, '…'] : kept).join('/')
  return template.length > PATH_LENGTH_MAX ? `${template.slice(0, PATH_LENGTH_MAX)}…` : template
}

function typed(segment: string): string {
  // Longer ones are not worth looking at for long.
  if (segment.length > PATH_LENGTH_MAX) return '{id}'
  return TYPES.find(([, form]) => form.test(segment))?.[0] ?? segment
}
