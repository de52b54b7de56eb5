package hook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxAnswer is how much is read of what a webhook answers; nothing of it matters
// but the status.
const maxAnswer = 64 << 10

// webhook POSTs batches to one URL, signed as Standard Webhooks has it
// (github.com/standard-webhooks/standard-webhooks, spec version 1): receivers find
// a library that checks it in most languages.
type webhook struct{ to *endpoint }

func newWebhook(s *SinkConfig) (*webhook, error) {
	to, err := newEndpoint(s.Webhook, s.Timeout, s.Parallel)
	if err != nil {
		return nil, err
	}
	return &webhook{to}, nil
}

func (w *webhook) close() error {
	w.to.client.CloseIdleConnections()
	return nil
}

// deliver posts all events as one body; the receiver takes all of them or none.
func (w *webhook) deliver(ctx context.Context, events []*Event) (taken, refused int, err error) {
	body := []byte(`{"events":[`)
	id := sha256.New()
	for i, e := range events {
		if i > 0 {
			body = append(body, ',')
		}
		body = e.appendJSON(body)
		fmt.Fprintln(id, e.ID)
	}
	body = append(body, "]}"...)
	// The same events make the same id, so a batch that comes again is known by it.
	response, err := w.to.post(ctx, "msg_"+hex.EncodeToString(id.Sum(nil)[:16]), body)
	if err != nil {
		return 0, 0, err
	}
	// Read to its end, so that the connection can be used again; an endless one is hung up on.
	_, _ = io.CopyN(io.Discard, response.Body, maxAnswer)
	_ = response.Body.Close()
	switch {
	case response.StatusCode/100 == 2:
		return len(events), 0, nil
	case response.StatusCode == http.StatusRequestEntityTooLarge:
		return 0, 0, fmt.Errorf("status %d: %w", response.StatusCode, errTooMany)
	}
	return 0, 0, fmt.Errorf("status %d", response.StatusCode)
}

// sign makes the value of Webhook-Signature.
func sign(key []byte, id, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.", id, timestamp)
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// secretPrefix marks a secret in the form of Standard Webhooks: what follows is
// base64.
const secretPrefix = "whsec_"

// minSecret is the least number of bytes of a key: what can be guessed signs nothing.
const minSecret = 24

func (c *WebhookConfig) key() ([]byte, error) {
	encoded, ok := strings.CutPrefix(c.Secret, secretPrefix)
	if !ok {
		if len(c.Secret) < minSecret {
			return nil, fmt.Errorf("secret: must be whsec_ and base64, or at least %d characters", minSecret)
		}
		return []byte(c.Secret), nil
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(key) < minSecret {
		return nil, fmt.Errorf("secret: after whsec_ must come base64 of at least %d bytes", minSecret)
	}
	return key, nil
}
