// Calls of the API by Go's own HTTPS, for tests: a server and its clients. Each says what it did, and ends with 1 if an answer is
// not that of its question.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	log.SetFlags(0)
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2], os.Args[3])
	case "ask":
		ask(os.Args[2], numbers(os.Args[3:6]), os.Args[6])
	case "ask-h2":
		askH2(os.Args[2], numbers(os.Args[3:5]))
	case "ask-http1":
		askHTTP1(os.Args[2], numbers(os.Args[3:5]))
	case "abandon":
		abandon(os.Args[2], numbers(os.Args[3:4])[0])
	}
}

func serve(key, cert string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println("port", portOf(listener.Addr()))
	quiet := log.New(io.Discard, "", 0)
	server := &http.Server{Handler: http.HandlerFunc(answer), ErrorLog: quiet}
	check(server.ServeTLS(listener, cert, key))
}

// With `size`, as many bytes as that, and a line about the call.
func answer(writer http.ResponseWriter, request *http.Request) {
	asked, err := io.Copy(io.Discard, request.Body)
	check(err)
	_, port, _ := net.SplitHostPort(request.RemoteAddr)
	writer.Header().Set("X-Client", "port="+port)
	query := request.URL.Query()
	if query.Get("size") == "" {
		fmt.Fprint(writer, "answer to ", request.URL.Path)
		return
	}
	status, _ := strconv.Atoi(query.Get("status"))
	size, _ := strconv.Atoi(query.Get("size"))
	told := fmt.Sprint(status)
	if strings.HasPrefix(request.Header.Get("Content-Type"), "application/grpc") {
		told = "200"
		writer.Header().Set("Content-Type", "application/grpc")
		writer.Header().Set("Trailer", "Grpc-Status")
		writer.WriteHeader(200)
	} else {
		if request.Method == "PUT" && status != 204 {
			writer.Header().Set("Content-Length", fmt.Sprint(size))
		}
		writer.WriteHeader(status)
	}
	body := bytes.Repeat([]byte{'x'}, size)
	if status != 204 {
		writer.Write(body[:size/2])
		writer.(http.Flusher).Flush()
		writer.Write(body[size/2:])
	} else {
		size = 0
	}
	line := fmt.Sprint("call ", request.Method, " ", request.URL.Path, " ", told, " ", asked, " ", size, " ", port)
	if writer.Header().Get("Trailer") != "" {
		writer.Header().Set("Grpc-Status", fmt.Sprint(status%16))
		line += fmt.Sprint(" ", status%16)
	}
	fmt.Println(line)
}

// A connection of another type, around a TCP connection.
type wrapped struct {
	net.Conn
	name string
}

// Likewise; that it is a connection, and of which type, only its methods know.
type hidden struct {
	name  string
	inner net.Conn
}

// Others have their turn between what is read and its deciphering, even where there is one processor.
func (conn *hidden) Read(bytes []byte) (int, error) {
	count, err := conn.inner.Read(bytes)
	runtime.Gosched()
	return count, err
}

func (conn *hidden) Write(bytes []byte) (int, error)       { return conn.inner.Write(bytes) }
func (conn *hidden) Close() error                          { return conn.inner.Close() }
func (conn *hidden) LocalAddr() net.Addr                   { return conn.inner.LocalAddr() }
func (conn *hidden) RemoteAddr() net.Addr                  { return conn.inner.RemoteAddr() }
func (conn *hidden) SetDeadline(until time.Time) error     { return conn.inner.SetDeadline(until) }
func (conn *hidden) SetReadDeadline(until time.Time) error { return conn.inner.SetReadDeadline(until) }
func (conn *hidden) SetWriteDeadline(until time.Time) error {
	return conn.inner.SetWriteDeadline(until)
}

// Go gives a connection up when it is not told within 50 ms that a question was written, as on a busy machine.
var errGivenUp = errors.New("the connection was given up")

// So many connections at once, so many calls of each, so many of them until it is opened anew.
func ask(port string, of []int, within string) {
	atOnce(of[0], func(int) {
		for left := of[1]; left > 0; {
			conn, err := net.Dial("tcp", "127.0.0.1:"+port)
			check(err)
			own := portOf(conn.LocalAddr())
			switch within {
			case "wrapped":
				conn = &wrapped{Conn: conn, name: own}
			case "hidden":
				conn = &hidden{inner: conn, name: own}
			}
			isUsed := false
			transport := &http.Transport{
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
				MaxConnsPerHost: 1,
				DialContext: func(context.Context, string, string) (net.Conn, error) {
					if isUsed {
						return nil, errGivenUp
					}
					isUsed = true
					return conn, nil
				},
			}
			call := 0
			for ; call < of[2] && call < left; call++ {
				path := fmt.Sprint("/port=", own, "/", call)
				response, body, err := tryExchange(transport, request("GET", port, path, 0))
				if errors.Is(err, errGivenUp) {
					break
				}
				check(err)
				if body != "answer to "+path || response.Header.Get("X-Client") != "port="+own {
					log.Fatal("another's answer: ", body)
				}
			}
			left -= call
			transport.CloseIdleConnections()
		}
	})
	fmt.Println("done", of[0]*of[1])
}

// So many calls as of gRPC over one connection, so many of them at once.
func askH2(port string, of []int) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	exchange(transport, request("GET", port, "/first", 0))
	atOnce(of[1], func(worker int) {
		for call := worker; call < of[0]; call += of[1] {
			size := call * 37 % 20000
			path := fmt.Sprintf("/shop.Orders/%d?status=%d&size=%d", call, call%7, size)
			question := request("POST", port, path, call*13%9000)
			question.Header.Set("Content-Type", "application/grpc+proto")
			response, body := exchange(transport, question)
			if len(body) != size || response.Trailer.Get("Grpc-Status") != fmt.Sprint(call%7) {
				log.Fatal("another's answer to ", path)
			}
		}
	})
	transport.CloseIdleConnections()
	fmt.Println("done", of[0])
}

// So many calls over so many connections that stay open, each with contents both ways.
func askHTTP1(port string, of []int) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: of[1]}
	atOnce(of[1], func(worker int) {
		for call := worker; call < of[0]; call += of[1] {
			status, size := []int{200, 200, 500, 404, 204}[call%5], call*37%20000
			path := fmt.Sprintf("/https/%d?status=%d&size=%d", call, status, size)
			response, body := exchange(transport, request([]string{"POST", "PUT"}[call%2], port, path, call*13%9000))
			if response.StatusCode != status || (len(body) != size && status != 204) {
				log.Fatal("another's answer to ", path)
			}
		}
	})
	transport.CloseIdleConnections()
	fmt.Println("done", of[0])
}

// So many connections, one after the other, of which TLS is never told that they ended: what was their memory and their
// descriptor is soon the next one's.
func abandon(port string, connections int) {
	for made := 0; made < connections; made++ {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		check(err)
		inside := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		path := fmt.Sprint("/port=", portOf(conn.LocalAddr()), "/")
		check(request("GET", port, path, 0).Write(inside))
		response, err := http.ReadResponse(bufio.NewReader(inside), nil)
		check(err)
		_, err = io.Copy(io.Discard, response.Body)
		check(err)
		check(conn.Close())
		runtime.GC()
	}
	fmt.Println("done", connections)
}

func request(method, port, path string, size int) *http.Request {
	body := bytes.NewReader(bytes.Repeat([]byte{'y'}, size))
	made, err := http.NewRequest(method, "https://127.0.0.1:"+port+path, body)
	check(err)
	made.Header.Set("Authorization", "Bearer secret")
	return made
}

func exchange(transport *http.Transport, question *http.Request) (*http.Response, string) {
	response, body, err := tryExchange(transport, question)
	check(err)
	return response, body
}

func tryExchange(transport *http.Transport, question *http.Request) (*http.Response, string, error) {
	response, err := transport.RoundTrip(question)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

func atOnce(workers int, work func(worker int)) {
	var all sync.WaitGroup
	for worker := 0; worker < workers; worker++ {
		all.Add(1)
		go func(worker int) {
			defer all.Done()
			work(worker)
		}(worker)
	}
	all.Wait()
}

func portOf(address net.Addr) string {
	_, port, err := net.SplitHostPort(address.String())
	check(err)
	return port
}

func numbers(texts []string) []int {
	found := make([]int, len(texts))
	for index, text := range texts {
		number, err := strconv.Atoi(text)
		check(err)
		found[index] = number
	}
	return found
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
