/** Does the work for each value, for so many at once: as soon as one is done the next begins. */
export async function each<T>(values: Iterable<T>, atOnce: number, work: (value: T) => Promise<void>): Promise<void> {
  const left = values[Symbol.iterator]()
  const worker = async () => {
    for (let next = left.next(); !next.done; next = left.next()) await work(next.value)
  }
  await Promise.all(Array.from({ length: atOnce }, worker))
}
