package hook

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// endpoint is a URL of the customer's that signed bodies are POSTed to.
type endpoint struct {
	url    string
	key    []byte
	client *http.Client
}

func newEndpoint(c *WebhookConfig, timeout time.Duration, parallel int) (*endpoint, error) {
	key, err := c.key()
	if err != nil {
		return nil, err
	}
	allowed, err := parseAllowed(c.Allow)
	if err != nil {
		return nil, err
	}
	return &endpoint{url: c.URL, key: key, client: newClient(timeout, allowed, parallel)}, nil
}

// newClient returns a client that reaches public addresses and those that are
// allowed, whatever leads there, and is led nowhere by an answer.
func newClient(timeout time.Duration, allowed []netip.Prefix, parallel int) *http.Client {
	dialer := net.Dialer{Timeout: timeout, Control: guard(allowed)}
	return &http.Client{
		Timeout: timeout,
		// A redirect is an answer that is not 2xx: the body would go to somebody the configuration doesn't name.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:       nil, // behind one the guard would see only the proxy's address
			DialContext: dialer.DialContext, MaxIdleConnsPerHost: parallel, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: 16 << 10,
			DisableCompression: true,
		},
	}
}

// post sends a body, signed. The id is the same for what is the same, so the client
// may repeat it where a connection at rest turns out to be closed.
func (e *endpoint) post(ctx context.Context, id string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "Chatgate")
	request.Header.Set("Idempotency-Key", id)
	request.Header.Set("Webhook-Id", id)
	request.Header.Set("Webhook-Timestamp", now)
	request.Header.Set("Webhook-Signature", sign(e.key, id, now, body))
	response, err := e.client.Do(request)
	if err != nil {
		// The client's error quotes the URL, which may hold a token.
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return nil, err
	}
	return response, nil
}
