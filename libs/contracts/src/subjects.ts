/**
 * Findings leave as OCSF JSON, not as protobuf, because SIEMs read them; so their subject stands here. The severity is the
 * last token, in OCSF's words in lower case: informational, low, medium, high, critical.
 */
export const FINDING_SUBJECT = 'tollward.siem.v1.finding.published'
export const FINDING_STREAM = 'FINDINGS'

/** Letters that no handler could take, as bytes with headers that say why. Trailing key: the consumer. */
export const DEAD_LETTER_SUBJECT = 'tollward.dead.v1.letter.stored'
export const DEAD_LETTER_STREAM = 'DEAD'
