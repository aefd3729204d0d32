/**
 * Does the work for each value, for so many at once: as soon as one is done the next begins. After a failure, which is thrown, none
 * begins any more.
 */
export async function each<T>(values: Iterable<T>, atOnce: number, work: (value: T) => Promise<void>): Promise<void> {
  const left = values[Symbol.iterator]()
  let failed = false
  const worker = async () => {
    for (let next = left.next(); !next.done && !failed; next = left.next()) {
      try {
        await work(next.value)
      } catch (error) {
        failed = true
        throw error
      }
    }
  }
  await Promise.all(Array.from({ length: atOnce }, worker))
}
