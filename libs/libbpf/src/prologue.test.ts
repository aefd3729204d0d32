import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cheapestGoPoint, cheapestPoint, firstCall, goFrame } from './prologue.ts'

const bytes = (hex: string) => Buffer.from(hex.replaceAll(' ', ''), 'hex')
const atReturn = (hex: string) => cheapestPoint(bytes(hex), { argumentCount: 4, stackIntact: true })
const atEntry = (hex: string) => cheapestPoint(bytes(hex), { argumentCount: 4, stackIntact: false })

/** SSL_read of OpenSSL 3.0: room on the stack, the canary, a test of the length; then it hands over. */
const PLAIN =
  '4883ec18 64488b042528000000 4889442408 31c0 85d2 782f 4889e1 4863d2 e83dfeffff 85c0 7e03 8b0424 488b442408'
/** SSL_read_ex of the same: hands its arguments over as they are. */
const EXTENDED = '4883ec08 e8c7fdffff 31d2 85c0 0f48c2 4883c408 c3'

test('a probe goes to a push at the beginning', () => {
  assert.deepEqual(atReturn('55 4889e5'), { at: 0, isCheap: true })
  assert.deepEqual(atReturn('4155 4154'), { at: 0, isCheap: true })
})

test('a probe skips the landing pad of indirect branches and instructions that change nothing', () => {
  assert.deepEqual(atReturn('f30f1efa 55'), { at: 4, isCheap: true })
  assert.deepEqual(atReturn('4885ff 0f84a0010000 55'), { at: 3, isCheap: true })
  assert.deepEqual(atReturn('66660f1f840000000000 55'), { at: 10, isCheap: true })
})

test('a probe that needs the return address is not put behind a move of the stack pointer', () => {
  assert.deepEqual(atReturn(PLAIN), { at: 0, isCheap: false })
  assert.deepEqual(atEntry(PLAIN), { at: 22, isCheap: true })
  assert.deepEqual(atReturn('4881ec00010000 7502'), { at: 0, isCheap: false })
})

test('a probe is not put behind an instruction that changes an argument', () => {
  for (const [what, code] of Object.entries({
    'mov rdi': '4889c7 55',
    'xor esi': '31f6 55',
    'movsxd rdx': '4863d2 55',
    'mov ecx, 1': 'b901000000 55',
    'lea rdi': '488d7f08 55',
    'sub rsi, 1': '4883ee01 55',
    'movzx edx': '0fb6d2 55',
  }))
    assert.deepEqual(atEntry(code), { at: 0, isCheap: false }, what)
  assert.deepEqual(atEntry('4989fa 55'), { at: 3, isCheap: true }, 'mov r10, rdi')
  assert.deepEqual(atEntry('4883fe01 55'), { at: 4, isCheap: true }, 'cmp rsi, 1')
})

test('a probe may go behind a change of what it does not read', () => {
  const clearsFourth = bytes('4531c0 31c9 e900000000')
  assert.deepEqual(cheapestPoint(clearsFourth, { argumentCount: 3, stackIntact: true }), { at: 5, isCheap: true })
  assert.deepEqual(cheapestPoint(clearsFourth, { argumentCount: 4, stackIntact: true }), { at: 0, isCheap: false })
})

test('a probe is not put behind an instruction that is not known', () => {
  assert.deepEqual(atEntry('c5f877 55'), { at: 0, isCheap: false })
  assert.deepEqual(atEntry('c3 55'), { at: 0, isCheap: false })
  assert.deepEqual(atEntry('c8100000 55'), { at: 0, isCheap: false })
})

test('code that is cut off is never read beyond its end', () => {
  const whole = bytes(PLAIN)
  for (let length = 0; length <= whole.length; length++) {
    const cut = whole.subarray(0, length)
    assert(cheapestPoint(cut, { argumentCount: 4, stackIntact: false }).at <= Math.max(0, length - 1))
    assert(firstCall(cut) === undefined || length >= 35)
  }
})

test('no bytes make the decoder fail, go on for ever or leave its bounds', () => {
  let state = 0x2545f491
  const random = () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state & 0xff
  }
  for (let round = 0; round < 50_000; round++) {
    const code = Uint8Array.from({ length: random() % 100 }, random)
    const { at } = cheapestPoint(code, { argumentCount: round % 5, stackIntact: round % 2 === 0 })
    assert(at === 0 || at < code.length)
    firstCall(code)
    const ofGo = cheapestGoPoint(code)
    assert(!ofGo || (ofGo.at > 0 && ofGo.at <= code.length))
    assert((goFrame(code)?.bytes ?? 1) > 0)
  }
})

/** Of Go 1.26: a test of the stack, the frame pointer, room. */
const GO = '493b6610 0f867a030000 55 4889e5 4883ec58 4889442468'
/** Of Go 1.19, which takes the room first; a jump is the first that is cheap. */
const OLDER_GO =
  '4c8d642498 4d3b6610 0f8664070000 4881ece8000000 4889ac24e0000000 440f11bc24d0000000 c644242f00 eb03 4c89c0'

test('a probe of Go goes behind the branch for a stack that is too small, from where the function begins anew', () => {
  assert.deepEqual(cheapestGoPoint(bytes(GO)), { at: 10, isCheap: true })
  assert.deepEqual(cheapestGoPoint(bytes(OLDER_GO)), { at: 44, isCheap: true })
})

test('a probe of Go is not put where its arguments are gone, and costs more where nothing is cheap', () => {
  assert.deepEqual(cheapestGoPoint(bytes('493b6610 7610 4889c3 55')), { at: 6, isCheap: false }, 'mov rbx, rax')
  assert.deepEqual(cheapestGoPoint(bytes('493b6610 7610 31c9 55')), { at: 6, isCheap: false }, 'xor ecx, ecx')
  assert.deepEqual(cheapestGoPoint(bytes('493b6610 7610 c5f877 55')), { at: 6, isCheap: false }, 'what is not known')
  assert.deepEqual(cheapestGoPoint(bytes('493b6610 7610 4889fa 55')), { at: 9, isCheap: true }, 'mov rdx, rdi')
  for (const other of ['4889e5 c3', '55 4889e5', '31c0 493b6610 7610 55', 'e800000000'])
    assert.equal(cheapestGoPoint(bytes(other)), undefined, other)
})

test('what a function of Go takes of the stack is found in each form of its beginning', () => {
  assert.deepEqual(goFrame(bytes(GO)), { at: 18, bytes: 0x60 })
  assert.deepEqual(goFrame(bytes(OLDER_GO)), { at: 22, bytes: 0xe8 })
  assert.deepEqual(goFrame(bytes('493b6610 7610 55 4889e5 4883c480')), { at: 14, bytes: 136 }, 'add rsp, -128')
  assert.equal(goFrame(bytes('493b6610 7610 4889442408 c3')), undefined)
})

test('the function that both kinds of a read hand over to is found, and whose arguments arrive as they came', () => {
  assert.deepEqual(firstCall(bytes(PLAIN)), { to: 35 - 451, argumentsIntact: false })
  assert.deepEqual(firstCall(bytes(EXTENDED)), { to: 9 - 569, argumentsIntact: true })
  assert.equal(firstCall(bytes('31c9 e800000000'))?.argumentsIntact, false, 'the fourth argument was cleared')
  assert.equal(firstCall(bytes('55 c3')), undefined)
})
