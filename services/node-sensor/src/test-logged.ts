/** Answers over TLS and in the clear with so many bytes as are asked for, in chunks or not, and logs each call as it saw it. */
const SERVER = `const [, key, cert] = process.argv
const { readFileSync } = require('node:fs')
const options = { key: readFileSync(key), cert: readFileSync(cert) }
const answer = (request, response) => {
  let asked = 0
  request.on('data', (bytes) => { asked += bytes.length }).on('end', () => {
    const [, status, size] = /status=(\\d+)&size=(\\d+)/.exec(request.url)
    const body = Buffer.alloc(Number(size), 'x')
    if (request.method === 'PUT') response.setHeader('Content-Length', size)
    response.writeHead(Number(status))
    if (status !== '204') response.write(body.subarray(0, body.length / 2))
    response.end(status === '204' ? undefined : body.subarray(body.length / 2), () =>
      console.log('call', request.method, request.url.split('?')[0], status, asked, status === '204' ? 0 : size, request.socket.remotePort))
  })
}
const h2 = require('node:http2').createSecureServer(options)
h2.on('stream', (stream, headers) => {
  const { remotePort } = stream.session.socket
  let asked = 0
  stream.on('data', (bytes) => { asked += bytes.length }).on('end', () => {
    const [, status, size] = /status=(\\d+)&size=(\\d+)/.exec(headers[':path'])
    stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': String(status % 16) }))
    stream.on('close', () => console.log('call', headers[':method'], headers[':path'].split('?')[0], 200, asked, size, remotePort, status % 16))
    stream.end(Buffer.alloc(Number(size), 'x'))
  })
})
h2.listen(0, '127.0.0.1', () => console.log('h2', h2.address().port))
for (const [name, server] of [['tls', require('node:https').createServer(options, answer)], ['clear', require('node:http').createServer(answer)]])
  server.listen(0, '127.0.0.1', () => console.log(name, server.address().port))`

/** Makes so many calls over some connections that stay open. */
const CLIENT = `const [, scheme, port, count] = process.argv
const web = require('node:' + scheme)
const agent = new web.Agent({ keepAlive: true, maxSockets: 5 })
const call = (number) => new Promise((resolve) => {
  const method = number % 3 === 0 ? 'POST' : 'PUT'
  const status = number % 7 === 0 ? 204 : number % 11 === 0 ? 500 : 200
  const path = '/' + scheme + '/' + number + '?status=' + status + '&size=' + (number * 37) % 20000
  const request = web.request({ port, host: '127.0.0.1', method, path, agent, rejectUnauthorized: false }, (response) => response.resume().on('end', resolve))
  request.setHeader('Authorization', 'Bearer secret-' + number)
  request.end(Buffer.alloc((number * 13) % 9000, 'y'))
})
Promise.all(Array.from({ length: Number(count) }, (_, number) => call(number))).then(() => process.exit())`

/** Makes so many calls of gRPC's form over one connection, some at once: together they fit into what is seen of one write. */
const H2_CLIENT = `const [, port, count] = process.argv
const session = require('node:http2').connect('https://127.0.0.1:' + port, { rejectUnauthorized: false })
const call = (number) => new Promise((resolve) => {
  const path = '/shop.Orders/' + number + '?status=' + number + '&size=' + (number * 37) % 3000
  const stream = session.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc+proto', authorization: 'Bearer secret-' + number })
  stream.end(Buffer.alloc((number * 13) % 3000, 'y'))
  stream.resume().on('close', resolve)
})
const some = async (from) => { for (let number = from; number < Number(count); number += 4) await call(number) }
Promise.all([0, 1, 2, 3].map(some)).then(() => session.close())`

/** So many calls over so many connections of one process each, with all that HTTP/1.1 may do without content, and with it. */
const PYTHON_CLIENT = `
import http.client, ssl, sys, threading
port, threads, calls = map(int, sys.argv[1:])
context = ssl._create_unverified_context()
def work(thread):
    connection = http.client.HTTPSConnection('127.0.0.1', port, context=context)
    for number in range(thread, calls, threads):
        kind = number % 6
        if kind == 5:
            connection.close()
            connection = http.client.HTTPSConnection('127.0.0.1', port, context=context)
        method, path = [('GET', '/f/20000/%d'), ('HEAD', '/f/1000/%d'), ('POST', '/p/%d'), ('GET', '/missing/%d'), ('DELETE', '/empty/%d'), ('GET', '/f/0/%d')][kind]
        connection.request(method, path % number, body=b'y' * (number * 13 % 9000) if kind == 2 else None)
        connection.getresponse().read()
all = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
for one in all: one.start()
for one in all: one.join()
print('done', flush=True)`

/** Programs that make calls, and a server that logs each as it saw it: `call METHOD PATH STATUS ASKED ANSWERED PORT [GRPC-STATUS]`. */
export const LOGGED = { server: SERVER, client: CLIENT, h2Client: H2_CLIENT, pythonClient: PYTHON_CLIENT } as const
