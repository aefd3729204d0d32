// Package traefik asks Tollward's authorizer about each request, and lets none through that it does not admit. Traefik interprets it
// as a local plugin; it needs nothing but Go's own library.
package traefik

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// What of a rule's rewriting is done here.
	question = "/forward-auth?applies=path,query,headers"
	// The authorizer answers within 0.8 s, by itself 503 where a part of it is not reachable.
	answerTimeout = time.Second
	dialTimeout   = 250 * time.Millisecond
	// Of connections to the authorizer that wait for the next question.
	idleConnectionsMax = 64
	idleTimeout        = 60 * time.Second
	// A problem document has a few hundred bytes.
	refusalBytesMax = 64 * 1024

	decisionHeader = "X-Tollward-Decision"
	uriHeader      = "X-Tollward-Uri"
	removeHeader   = "X-Tollward-Remove"
	upstreamPrefix = "X-Tollward-Upstream-"
	answerPrefix   = "X-Tollward-Answer-"

	unavailable = `{"type":"https://tollward.dev/problems/unavailable","title":"Cannot decide now","status":503,` +
		`"detail":"A part that decides about requests is not reachable; repeat the request after Retry-After seconds."}`
)

// What the API gets under these names is what the authorizer says; where it says nothing, they are among those to remove.
var copied = []string{
	"Authorization", "Dpop", "X-Tollward-Client", "X-Tollward-Subject", "X-Tollward-Scopes", "X-Tollward-Pass", decisionHeader,
}

// What clients say of the request by these names does not arrive. Traefik itself takes away what they say by other names that begin
// with X-Forwarded-, and sets its own; the authorizer's answer names those that say another method or path.
var saidOfTheRequest = []string{"Forwarded", "X-Client-Certificate", "X-Forwarded-Method", "X-Forwarded-Prefix", "X-Forwarded-Uri"}

// Of the connection to the authorizer, or of a body that is not sent along.
var notAsked = []string{
	"Connection", "Content-Length", "Expect", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// Of the connection to the authorizer, not of its refusal.
var notTold = []string{"Connection", "Content-Length", "Date", "Keep-Alive", "Transfer-Encoding"}

// Config is what the configuration of the middleware says.
type Config struct {
	// Authorizer is the address and port of the authorizer's HTTP server.
	Authorizer string `json:"authorizer,omitempty"`
}

// CreateConfig returns what holds where the configuration says nothing.
func CreateConfig() *Config {
	return &Config{Authorizer: "127.0.0.1:9192"}
}

type middleware struct {
	next   http.Handler
	url    string
	client *http.Client

	lock sync.Mutex
	// Requests refused without a decision that were not told of yet, and why the last one was.
	undecided int
	why       error
}

// New makes the middleware in front of next. An authorizer that is no address and port is an error, and Traefik then serves no route
// that wants the middleware.
func New(_ context.Context, next http.Handler, config *Config, _ string) (http.Handler, error) {
	if _, _, err := net.SplitHostPort(config.Authorizer); err != nil {
		return nil, errors.New("authorizer: write address and port, such as 127.0.0.1:9192")
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, address)
	}
	client := &http.Client{
		Timeout: answerTimeout,
		Transport: &http.Transport{
			DialContext:         dial,
			MaxIdleConnsPerHost: idleConnectionsMax,
			IdleConnTimeout:     idleTimeout,
			DisableCompression:  true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return &middleware{next: next, url: "http://" + config.Authorizer + question, client: client}, nil
}

// ServeHTTP decides about one request. Whatever is no plain yes admits nothing.
func (m *middleware) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	for _, name := range saidOfTheRequest {
		req.Header.Del(name)
	}
	asked, err := m.ask(req)
	if err != nil {
		m.refuseUndecided(rw, err)
		return
	}
	answer, err := m.client.Do(asked)
	if err != nil {
		m.refuseUndecided(rw, err)
		return
	}
	defer answer.Body.Close()
	switch {
	case isAdmission(answer):
		// What is left of it, so that the connection serves the next question.
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, refusalBytesMax))
		m.admit(rw, req, answer.Header)
	case answer.Header.Get(decisionHeader) != "" && answer.StatusCode >= 400 && answer.StatusCode < 600:
		m.refuse(rw, answer)
	default:
		m.refuseUndecided(rw, errors.New("the answer is none of an authorizer: "+answer.Status))
	}
}

// ask makes the question: the request's own headers, and what it is. With a load balancer in front that Traefik trusts, what that says
// of the client comes before its own address.
func (m *middleware) ask(req *http.Request) (*http.Request, error) {
	asked, err := http.NewRequestWithContext(req.Context(), http.MethodGet, m.url, http.NoBody)
	if err != nil {
		return nil, err
	}
	peer, _, err := net.SplitHostPort(req.RemoteAddr)
	if err != nil {
		return nil, err
	}
	for name, values := range req.Header {
		asked.Header[name] = append([]string(nil), values...)
	}
	for _, name := range notAsked {
		asked.Header.Del(name)
	}
	asked.Header.Set("X-Forwarded-Method", req.Method)
	asked.Header.Set("X-Forwarded-Uri", target(req))
	asked.Header.Set("X-Forwarded-Host", req.Host)
	asked.Header.Add("X-Forwarded-For", peer)
	if req.TLS == nil {
		asked.Header.Set("X-Forwarded-Proto", "http")
	} else {
		asked.Header.Set("X-Forwarded-Proto", "https")
		if len(req.TLS.PeerCertificates) > 0 {
			der := base64.StdEncoding.EncodeToString(req.TLS.PeerCertificates[0].Raw)
			asked.Header.Set("X-Client-Certificate", ":"+der+":")
		}
	}
	return asked, nil
}

// target is path and query as they came; where a request names its host there, too, without that.
func target(req *http.Request) string {
	if strings.HasPrefix(req.RequestURI, "/") || req.RequestURI == "*" {
		return req.RequestURI
	}
	return req.URL.RequestURI()
}

func isAdmission(answer *http.Response) bool {
	_, saysWhatToRemove := answer.Header[removeHeader]
	said := answer.Header
	return answer.StatusCode == http.StatusOK && said.Get(decisionHeader) != "" && said.Get(uriHeader) != "" && saysWhatToRemove
}

func (m *middleware) admit(rw http.ResponseWriter, req *http.Request, said http.Header) {
	// Traefik reads ";" between the parts of a query as "&"; whoever decided did not.
	uri := escapedQuery(said.Get(uriHeader))
	parsed, err := url.ParseRequestURI(uri)
	if err != nil {
		m.refuseUndecided(rw, err)
		return
	}
	for _, name := range strings.Split(said.Get(removeHeader), ",") {
		req.Header.Del(strings.TrimSpace(name))
	}
	for _, name := range copied {
		if value := said.Get(name); value != "" {
			req.Header.Set(name, value)
		}
	}
	told := map[string]string{}
	for name, values := range said {
		if rest := strings.TrimPrefix(name, upstreamPrefix); rest != name {
			req.Header.Set(rest, values[0])
		} else if rest := strings.TrimPrefix(name, answerPrefix); rest != name {
			told[rest] = values[0]
		}
	}
	req.URL.Path, req.URL.RawPath, req.URL.RawQuery = parsed.Path, parsed.RawPath, parsed.RawQuery
	req.RequestURI = uri
	rw.Header().Set(decisionHeader, said.Get(decisionHeader))
	if len(told) > 0 {
		rw = &teller{to: rw, told: told}
	}
	m.next.ServeHTTP(rw, req)
}

func escapedQuery(uri string) string {
	path, query, hasQuery := strings.Cut(uri, "?")
	if !hasQuery {
		return path
	}
	return path + "?" + strings.ReplaceAll(query, ";", "%3B")
}

// refuse passes the authorizer's refusal on as it is.
func (m *middleware) refuse(rw http.ResponseWriter, answer *http.Response) {
	body, err := io.ReadAll(io.LimitReader(answer.Body, refusalBytesMax))
	if err != nil {
		m.refuseUndecided(rw, err)
		return
	}
	for name, values := range answer.Header {
		rw.Header()[name] = values
	}
	for _, name := range notTold {
		rw.Header().Del(name)
	}
	rw.WriteHeader(answer.StatusCode)
	_, _ = rw.Write(body)
}

// refuseUndecided refuses, and sees to it that Traefik's own output says so within a second.
func (m *middleware) refuseUndecided(rw http.ResponseWriter, why error) {
	m.lock.Lock()
	m.undecided++
	m.why = why
	if m.undecided == 1 {
		time.AfterFunc(time.Second, m.tellUndecided)
	}
	m.lock.Unlock()
	rw.Header().Set("Content-Type", "application/problem+json")
	rw.Header().Set("Cache-Control", "no-store")
	rw.Header().Set("Retry-After", "2")
	rw.WriteHeader(http.StatusServiceUnavailable)
	_, _ = rw.Write([]byte(unavailable))
}

// tellUndecided says how many requests were refused since it last did, and why the last one was.
func (m *middleware) tellUndecided() {
	m.lock.Lock()
	defer m.lock.Unlock()
	fmt.Fprintf(os.Stderr, "tollward: requests refused, as nobody decided about them: %d, the last one because of: %v\n", m.undecided, m.why)
	m.undecided = 0
}

// teller tells the client what a rule sets beside the API's answer, in place of what the API says by the same names. To Traefik an
// interpreted writer can do no more than write and be taken over, so each part of an answer goes out as it comes.
type teller struct {
	to      http.ResponseWriter
	told    map[string]string
	hasTold bool
}

func (t *teller) Header() http.Header {
	return t.to.Header()
}

func (t *teller) WriteHeader(status int) {
	// There may be others before it (1xx).
	if status >= http.StatusOK {
		t.tell()
	}
	t.to.WriteHeader(status)
}

func (t *teller) Write(bytes []byte) (int, error) {
	t.tell()
	written, err := t.to.Write(bytes)
	if flusher, ok := t.to.(http.Flusher); ok {
		flusher.Flush()
	}
	return written, err
}

func (t *teller) tell() {
	if t.hasTold {
		return
	}
	t.hasTold = true
	for name, value := range t.told {
		t.to.Header().Set(name, value)
	}
}

// Hijack gives the connection away, to a WebSocket.
func (t *teller) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	t.tell()
	hijacker, ok := t.to.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("this connection cannot be taken over")
	}
	return hijacker.Hijack()
}
