/** Edits beyond which a word is another word, not a misspelt one. */
const EDITS_MAX = 2
/** Longer words are not compared: the work grows with the square. */
const LENGTH_MAX = 64

/** The known word that was probably meant: the one with the fewest edits, capitals aside. Undefined if none is near. */
export function nearest(written: string, known: readonly string[]): string | undefined {
  if (written.length > LENGTH_MAX) return undefined
  const lower = written.toLowerCase()
  const ranked = known
    .map((word) => ({ word, edits: editsBetween(lower, word.toLowerCase()) }))
    .filter(({ word, edits }) => edits <= EDITS_MAX && edits <= word.length / 2)
    .sort((a, b) => a.edits - b.edits)
  return ranked[0]?.word
}

/** Levenshtein's distance. */
function editsBetween(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (const [i, letter] of [...a].entries()) {
    const next = [i + 1]
    for (const [j, other] of [...b].entries()) {
      const replaced = (row[j] ?? 0) + (letter === other ? 0 : 1)
      next.push(Math.min(replaced, (row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1))
    }
    row = next
  }
  return row.at(-1) ?? 0
}
