/** Kinds of sensitive data that are told apart. What was found is never kept, only that it was there. */
export const SENSITIVE_KINDS = [
  'aws-access-key',
  'card-number',
  'email',
  'iban',
  'jwt',
  'password',
  'private-key',
  'us-ssn',
] as const

export type SensitiveKind = (typeof SENSITIVE_KINDS)[number]

/** Of one message: what stands further behind is not looked at. */
const SCAN_BYTES_MAX = 64 * 1024
/** So much of one piece is looked at again with the next, for what lies across: longer than any kind but keys and tokens need. */
const OVERLAP_BYTES = 128

const EMAIL_LOCAL_MAX = 64
const EMAIL_DOMAIN_MAX = 253
const TOP_LEVEL_DOMAIN = /\.[A-Za-z]{2,24}$/
const DOMAIN = /^[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}))+$/
/** Base64url of `{"`, with which the JSON of header and payload begin. */
const JSON_BEGINS = 'eyJ'
const JWT_PART_MIN = 8
const JWT_PART_MAX = 4096
const KEY_BEGINS = '-----BEGIN '
const KEY_NAMES_MAX = 40
const PRIVATE_KEY = /^[A-Z0-9 ]{0,24}PRIVATE KEY(?: BLOCK)?-----/
const AWS_KEY = /^A(?:KIA|SIA)[A-Z2-7]{16}(?![A-Za-z0-9])/
/** A name in JSON, a form or a query, with a value that is not empty. */
const PASSWORD = /(?:^|["'&?\s{,;])(?:password|passwd|pwd|passphrase)(?:["']\s{0,8}:\s{0,8}["'][^"']|=[^&\s])/i
const SSN = /^(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}$/
/** Of a social security number, with its hyphens. */
const NUMBER_LENGTH_MIN = 11
const CARD_DIGITS_MIN = 13
const CARD_DIGITS_MAX = 19
/** As issuers print them. */
const CARD_GROUPS = [
  [4, 4, 4, 4],
  [4, 4, 4, 4, 3],
  [4, 6, 5],
  [4, 6, 4],
] as const
/** First digits and lengths that issuers use; numbers of other kinds have others. */
const CARD_ISSUERS = [
  { begins: /^4/, digits: [13, 16, 19] },
  { begins: /^(?:5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720)/, digits: [16] },
  { begins: /^3[47]/, digits: [15] },
  { begins: /^(?:6011|65|64[4-9]|62|35(?:2[89]|[3-8]))/, digits: [16, 17, 18, 19] },
  { begins: /^3(?:0[0-5]|095|[689])/, digits: [14, 16, 19] },
] as const
/** Country and length, as registered with SWIFT. */
const IBAN_LENGTHS: Readonly<Record<string, number>> = Object.fromEntries(
  (
    'AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 ' +
    'GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 ' +
    'MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 ' +
    'VA22 VG24 XK20'
  )
    .split(' ')
    .map((entry) => [entry.slice(0, 2), Number(entry.slice(2))]),
)
/** With the spaces of its printed form. */
const IBAN_LENGTH_MAX = 34 + 8

const ZERO = 48
const NINE = 57

/** Looks for sensitive data in the pieces of one message, each as it comes: time is linear in their length. */
export class SensitiveScan {
  readonly #found: Set<SensitiveKind>
  #left = SCAN_BYTES_MAX
  #tail = ''

  /** Adds what is found. */
  constructor(found: Set<SensitiveKind>) {
    this.#found = found
  }

  scan(bytes: Uint8Array): void {
    const length = Math.min(bytes.length, this.#left)
    if (length === 0) return
    this.#left -= length
    const text = this.#tail + Buffer.from(bytes.buffer, bytes.byteOffset, length).toString('latin1')
    findSensitive(text, this.#found)
    this.#tail = text.slice(-OVERLAP_BYTES)
  }
}

/** Adds the kinds that a text holds; each character is an octet. */
export function findSensitive(text: string, found: Set<SensitiveKind>): void {
  if (!found.has('email') && hasEmail(text)) found.add('email')
  if (!found.has('jwt') && hasJwt(text)) found.add('jwt')
  if (!found.has('private-key') && hasPrivateKey(text)) found.add('private-key')
  if (!found.has('aws-access-key') && hasAwsKey(text)) found.add('aws-access-key')
  if (!found.has('password') && PASSWORD.test(text)) found.add('password')
  findNumbers(text, found)
}

/** A path with the segments that hold sensitive data replaced by its kind, as `{email}`; these kinds are added. */
export function withoutSensitive(path: string, found: Set<SensitiveKind>): string {
  if (!/[@%\d]|eyJ/.test(path)) return path
  const segments = path.split('/').map((segment) => {
    const kinds = new Set<SensitiveKind>()
    findSensitive(decoded(segment), kinds)
    for (const kind of kinds) found.add(kind)
    const [kind] = kinds
    return kind === undefined ? segment : `{${kind}}`
  })
  return segments.join('/')
}

/** Percent-decoded, octet by octet. */
export function decoded(text: string): string {
  return text.replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
}

function hasEmail(text: string): boolean {
  for (let at = text.indexOf('@'); at >= 0; at = text.indexOf('@', at + 1)) {
    let from = at
    while (from > 0 && at - from <= EMAIL_LOCAL_MAX && isLocal(text.charCodeAt(from - 1))) from -= 1
    if (from === at || at - from > EMAIL_LOCAL_MAX) continue
    let to = at + 1
    while (to < text.length && to - at <= EMAIL_DOMAIN_MAX && isDomain(text.charCodeAt(to))) to += 1
    // A sentence may end after it.
    const domain = text.slice(at + 1, to).replace(/[.-]{1,8}$/, '')
    if (DOMAIN.test(domain) && TOP_LEVEL_DOMAIN.test(domain)) return true
  }
  return false
}

function hasJwt(text: string): boolean {
  for (let at = text.indexOf(JSON_BEGINS); at >= 0; at = text.indexOf(JSON_BEGINS, at + 1)) {
    const header = base64End(text, at)
    if (header - at < JWT_PART_MIN || text[header] !== '.') {
      at = Math.max(at, header - JSON_BEGINS.length)
      continue
    }
    const second = base64End(text, header + 1)
    // Signed: JSON comes second. Encrypted: there are five parts.
    if (text.startsWith(JSON_BEGINS, header + 1) && second - header > JWT_PART_MIN && text[second] === '.') return true
    if (text[second] === '.' && text[base64End(text, second + 1)] === '.' && second - header > JWT_PART_MIN) return true
  }
  return false
}

function base64End(text: string, from: number): number {
  let at = from
  const end = Math.min(text.length, from + JWT_PART_MAX)
  while (at < end && isBase64Url(text.charCodeAt(at))) at += 1
  return at
}

function hasPrivateKey(text: string): boolean {
  for (let at = text.indexOf(KEY_BEGINS); at >= 0; at = text.indexOf(KEY_BEGINS, at + 1)) {
    const from = at + KEY_BEGINS.length
    if (PRIVATE_KEY.test(text.slice(from, from + KEY_NAMES_MAX))) return true
  }
  return false
}

function hasAwsKey(text: string): boolean {
  for (const begins of ['AKIA', 'ASIA'])
    for (let at = text.indexOf(begins); at >= 0; at = text.indexOf(begins, at + 1))
      if (!isWord(text.charCodeAt(at - 1)) && AWS_KEY.test(text.slice(at, at + 21))) return true
  return false
}

/** Card numbers, social security numbers and bank accounts: whatever begins with a digit, or two letters before two. */
function findNumbers(text: string, found: Set<SensitiveKind>): void {
  if (found.has('card-number') && found.has('us-ssn') && found.has('iban')) return
  let at = 0
  while (at < text.length) {
    if (!isDigit(text.charCodeAt(at))) {
      at += 1
      continue
    }
    if (!found.has('iban') && isDigit(text.charCodeAt(at + 1)) && isIban(text, at - 2)) found.add('iban')
    const end = numberEnd(text, at)
    // A number that is part of a word or of a fraction is none of these.
    const before = text.charCodeAt(at - 1)
    const stands = !isWord(before) && text[at - 1] !== '.' && !isWord(text.charCodeAt(end))
    if (stands && end - at >= NUMBER_LENGTH_MIN) judgeNumber(text.slice(at, end), found)
    at = end
  }
}

/** Other numbers may stand before and behind. */
function judgeNumber(number: string, found: Set<SensitiveKind>): void {
  const groups = number.split(/[ -]/)
  for (const [index, group] of groups.entries()) {
    if (isCard(group)) found.add('card-number')
    for (const lengths of CARD_GROUPS) {
      const grouped = groups.slice(index, index + lengths.length)
      if (!grouped.every((part, place) => part.length === lengths[place])) continue
      if (grouped.length === lengths.length && isCard(grouped.join(''))) found.add('card-number')
    }
    if (SSN.test(groups.slice(index, index + 3).join('-'))) found.add('us-ssn')
  }
}

/** Digits with single spaces or hyphens between. */
function numberEnd(text: string, from: number): number {
  let at = from + 1
  while (at < text.length) {
    const code = text.charCodeAt(at)
    if (isDigit(code)) at += 1
    else if ((text[at] === ' ' || text[at] === '-') && isDigit(text.charCodeAt(at + 1))) at += 2
    else break
  }
  return at
}

function isCard(digits: string): boolean {
  if (digits.length < CARD_DIGITS_MIN || digits.length > CARD_DIGITS_MAX) return false
  const issued = CARD_ISSUERS.some(
    ({ begins, digits: lengths }) => begins.test(digits) && lengths.some((length) => length === digits.length),
  )
  return issued && luhn(digits)
}

/** ISO/IEC 7812-1, annex B. */
function luhn(digits: string): boolean {
  let sum = 0
  for (let index = 0; index < digits.length; index += 1) {
    const digit = digits.charCodeAt(digits.length - 1 - index) - ZERO
    const doubled = index % 2 === 0 ? digit : digit * 2
    sum += doubled > 9 ? doubled - 9 : doubled
  }
  return sum % 10 === 0
}

/** ISO 13616, with or without the spaces of its printed form. */
function isIban(text: string, from: number): boolean {
  if (from < 0 || isWord(text.charCodeAt(from - 1))) return false
  const length = IBAN_LENGTHS[text.slice(from, from + 2)]
  if (length === undefined) return false
  let iban = ''
  let at = from
  while (iban.length < length && at - from < IBAN_LENGTH_MAX && at < text.length) {
    const code = text.charCodeAt(at)
    if (isDigit(code) || (code >= 65 && code <= 90)) iban += text[at]
    else if (text[at] !== ' ' || iban.length % 4 !== 0) return false
    at += 1
  }
  return iban.length === length && !isWord(text.charCodeAt(at)) && mod97(iban) === 1
}

/** ISO/IEC 7064: letters count as 10 to 35, the first four come last. */
function mod97(iban: string): number {
  let rest = 0
  for (const letter of iban.slice(4) + iban.slice(0, 4)) {
    const value = Number.parseInt(letter, 36)
    rest = (rest * (value > 9 ? 100 : 10) + value) % 97
  }
  return rest
}

function isDigit(code: number): boolean {
  return code >= ZERO && code <= NINE
}

/** Not where there is nothing: the code is NaN there. */
function isWord(code: number): boolean {
  return isDigit(code) || (code >= 65 && code <= 90) || (code >= 97 && code <= 122) || code === 95
}

function isBase64Url(code: number): boolean {
  return isWord(code) || code === 45
}

function isDomain(code: number): boolean {
  return code === 45 || code === 46 || (isWord(code) && code !== 95)
}

function isLocal(code: number): boolean {
  return isDomain(code) || code === 95 || code === 43 || code === 37
}
