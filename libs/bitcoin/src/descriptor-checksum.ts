const INPUT_CHARSET =
  '0123456789()[],\'/*abcdefgh@:$%{}IJKLMNOPQRSTUVWXYZ&+-.;<=>?!^_|~ijklmnopqrstuvwxyzABCDEFGH`#"\\ '
const CHECKSUM_CHARSET = 'qpzry9x8gf2tvdw0s3jn54khce6mua7l'
const GENERATOR = [0xf5dee51989n, 0xa9fdca3312n, 0x1bab10e32dn, 0x3706b1677an, 0x644d626ffdn]
const CHECKSUM_LENGTH = 8

/** The eight characters that follow `#` in an output descriptor (BIP-380). Throws RangeError for a character no descriptor has. */
export function descriptorChecksum(descriptor: string): string {
  const symbols: number[] = []
  let group = 0
  for (const [position, character] of [...descriptor].entries()) {
    const value = INPUT_CHARSET.indexOf(character)
    if (value === -1) throw new RangeError(`a descriptor has no ${JSON.stringify(character)}`)
    symbols.push(value & 31)
    // The high bits of three characters together make one more symbol.
    group = group * 3 + (value >> 5)
    const last = position === descriptor.length - 1
    if (position % 3 === 2 || last) {
      symbols.push(group)
      group = 0
    }
  }
  const checksum = [...symbols, ...Array.from({ length: CHECKSUM_LENGTH }, () => 0)].reduce(polymod, 1n) ^ 1n
  return Array.from({ length: CHECKSUM_LENGTH }, (_, position) =>
    CHECKSUM_CHARSET.charAt(Number((checksum >> BigInt(5 * (CHECKSUM_LENGTH - 1 - position))) & 31n)),
  ).join('')
}

function polymod(checksum: bigint, symbol: number): bigint {
  const top = checksum >> 35n
  const shifted = ((checksum & 0x7ffffffffn) << 5n) ^ BigInt(symbol)
  return GENERATOR.reduce((sum, generator, bit) => ((top >> BigInt(bit)) & 1n ? sum ^ generator : sum), shifted)
}
