import { formatBtc } from '@tollward/bitcoin'
import { type Fragment, type Html, html, type PageContent } from '@tollward/pages'
import { encode } from 'uqr'
import type { ShownInvoice } from './http-shown.ts'

/** Light modules around the code that readers need to find it (ISO/IEC 18004). */
const QUIET_MODULES = 4

/**
 * Keeps the page current: replaces the parts that changed, and counts the clocks down. Without it the page says the same, as of when
 * it was loaded. Each part is markup that this service made, and the policy of the page lets no other script run.
 */
export const PAGE_SCRIPT = `
'use strict'
const parts = ['state', 'todo', 'facts']
const show = (text) => {
  const next = new DOMParser().parseFromString(text, 'text/html')
  for (const id of parts) {
    const [now, then] = [document.getElementById(id), next.getElementById(id)]
    if (now.innerHTML !== then.innerHTML) now.innerHTML = then.innerHTML
  }
  tick()
}
const tick = () => {
  for (const time of document.querySelectorAll('time')) {
    const seconds = Math.max(0, Math.floor((Date.parse(time.dateTime) - Date.now()) / 1000))
    const units = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']]
    const first = Math.max(0, units.findIndex(([size]) => seconds >= size))
    const left = units.slice(first, first + 2).map(([size, unit], index) =>
      Math.floor((index === 0 ? seconds : seconds % units[first][0]) / size) + ' ' + unit)
    time.nextElementSibling.textContent = seconds === 0 ? ' (over)' : ' (in ' + left.join(' ') + ')'
  }
}
const listen = () => {
  const events = new EventSource(location.href)
  events.addEventListener('invoice', ({ data }) => show(data))
  events.onerror = () => { if (events.readyState === EventSource.CLOSED) setTimeout(listen, 15000) }
}
document.getElementById('again').hidden = true
tick()
setInterval(tick, 1000)
listen()
`

/** What a state means to a person: in a few words, and in a sentence that says what to do. */
const STATES: Readonly<Record<ShownInvoice['state'], readonly [words: string, sentence: string]>> = {
  issued: ['Waiting for your payment', 'Pay with any bitcoin wallet.'],
  seen: ['Payment seen', 'It is on its way into a block. You need do nothing more.'],
  confirming: ['Payment is being confirmed', 'You need do nothing more.'],
  paid: ['Paid', 'Go back to the application.'],
  overpaid: ['Paid', 'It was more than was asked for. Go back to the application.'],
  underpaid: ['Too little was paid', 'Some of the amount is missing.'],
  'paid-late': ['Paid too late', 'The payment came after its time. Start again in the application.'],
  expired: ['Expired', 'Do not pay this invoice any more. Start again in the application.'],
  replaced: ['Payment replaced', 'Another transaction spends the same coins, so this payment will never arrive.'],
  reorganised: [
    'Payment taken back',
    'The block that held it is gone. It counts again as soon as it is confirmed again.',
  ],
  redeemed: ['Paid and in use', 'You need do nothing more.'],
  exhausted: ['Used up', 'What this payment bought is used up.'],
}

/** An invoice's page for whoever pays it. */
export function payPage(invoice: ShownInvoice): PageContent {
  const title = `Invoice of ${btc(invoice.amountSats)} BTC`
  const main = html`<div class="card">
<h1>${title}</h1>
${payParts(invoice)}
<p id="again"><a href="">Look again</a></p>
</div>`
  return { title, main, script: PAGE_SCRIPT }
}

/** The parts of the page that change. */
export function payParts(invoice: ShownInvoice): Html {
  const [words, sentence] = STATES[invoice.state]
  return html`<p class="notice" id="state" role="status"><strong>${words}.</strong> ${sentence}</p>
<div id="todo">${invoice.toPaySats !== '0' && whatToPay(invoice)}${clocks(invoice)}</div>
<div id="facts">${facts(invoice)}</div>`
}

/** In the place of the page that cannot be shown. */
export function faultPage(message: string): PageContent {
  const title = 'This cannot be shown'
  return { title, main: html`<div class="card"><h1>${title}</h1><p>${message}</p></div>` }
}

function whatToPay({ toPaySats, address, uri }: ShownInvoice): Html {
  return html`<h2>Pay</h2>
<dl>
<dt>Amount</dt><dd><span class="copied">${btc(toPaySats)}</span> BTC (${grouped(toPaySats)} sats)</dd>
<dt>Address</dt><dd class="copied">${address}</dd>
</dl>
${qrCode(uri)}
<p><a href="${uri}">Open in a wallet on this device</a></p>`
}

/** A QR code as one path, so that it is sharp in every size. */
function qrCode(text: string): Html {
  const { size, data } = encode(text, { ecc: 'M', border: QUIET_MODULES })
  const dark = data.flatMap((row, y) => row.flatMap((isDark, x) => (isDark ? [`M${x} ${y}h1v1h-1z`] : [])))
  return html`<svg class="qr" viewBox="0 0 ${size} ${size}" role="img" aria-label="QR code of the payment, for a wallet on another device" shape-rendering="crispEdges"><path d="${dark.join('')}"/></svg>`
}

function clocks({ state, toPaySats, payBy, confirmBy, confirmByHeight, redeemBy }: ShownInvoice): Fragment {
  if (toPaySats !== '0') return clock('Pay by', payBy)
  if (state === 'seen' || state === 'confirming' || state === 'reorganised') {
    return clock(
      'To be confirmed by',
      confirmBy,
      confirmByHeight && html` or in block ${confirmByHeight} at the latest`,
    )
  }
  return (state === 'paid' || state === 'overpaid') && redeemBy !== undefined && clock('To be used by', redeemBy)
}

function clock(label: string, at: string, also?: Fragment): Html {
  return html`<p>${label} <time datetime="${at}">${at.slice(0, 19).replace('T', ' ')} UTC</time><span></span>${also}</p>`
}

function facts(invoice: ShownInvoice): Html {
  const { plan, requests, durationSeconds, listPriceSats, discounts, creditUsedSats, payments } = invoice
  const { confirmations, confirmationsNeeded, creditedSats } = invoice
  const counts = payments.length > 0 && html`<dt>Confirmations</dt><dd>${confirmations} of ${confirmationsNeeded}</dd>`
  return html`<h2>What it is for</h2>
<dl>
<dt>Plan</dt><dd>${plan}</dd>
${requests !== undefined && html`<dt>Requests</dt><dd>${grouped(String(requests))}</dd>`}
${durationSeconds !== undefined && html`<dt>For</dt><dd>${duration(durationSeconds)}</dd>`}
<dt>Price</dt><dd>${grouped(listPriceSats)} sats</dd>
${discounts.map(({ kind, amountSats }) => html`<dt>${DISCOUNTS[kind]}</dt><dd>−${grouped(amountSats)} sats</dd>`)}
${creditUsedSats !== '0' && html`<dt>From your credit</dt><dd>−${grouped(creditUsedSats)} sats</dd>`}
${payments.length > 0 && html`<dt>Received</dt>`}${payments.map(payment)}
${counts}
${creditedSats !== '0' && html`<dt>Became credit</dt><dd>${grouped(creditedSats)} sats</dd>`}
</dl>`
}

const DISCOUNTS = { bitcoin: 'Less for paying in bitcoin', conduct: 'Less for good conduct' } as const

function payment({ txid, amountSats, blockHeight, replaced }: ShownInvoice['payments'][number]): Html {
  const where = replaced ? 'replaced' : blockHeight === undefined ? 'in no block yet' : `in block ${blockHeight}`
  return html`<dd>${grouped(amountSats)} sats, ${where}: ${txid}</dd>`
}

function btc(amountSats: string): string {
  return formatBtc(BigInt(amountSats))
}

/** 1234567 as 1 234 567, with spaces that do not break. */
function grouped(amount: string): string {
  return amount.replace(/\B(?=(\d{3})+$)/g, '\u202f')
}

function duration(seconds: number): string {
  const [size, unit] = (
    [
      [86_400, 'days'],
      [3_600, 'hours'],
      [60, 'minutes'],
    ] as const
  ).find(([each]) => seconds % each === 0) ?? [1, 'seconds']
  return `${seconds / size} ${seconds === size ? unit.slice(0, -1) : unit}`
}
