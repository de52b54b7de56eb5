//go:build !secondpass

package gatewaytest

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// What a wire does to a Redis behind it.
func TestAWireDelaysHoldsCutsAndResets(t *testing.T) {
	r := Shared(t, Standalone)
	w := StartWire(t, r.Nodes[0].Addr)
	c := redis.NewClient(&redis.Options{Addr: w.Addr, MaxRetries: -1, ReadTimeout: Deadline, ContextTimeoutEnabled: true})
	defer c.Close()
	call := func(within time.Duration, args ...any) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		began := time.Now()
		err := c.Do(ctx, args...).Err()
		return time.Since(began), err
	}
	if _, err := call(Deadline, "SET", "key", "1"); err != nil {
		t.Fatal(err)
	}
	w.Delay(50 * time.Millisecond)
	if took, err := call(Deadline, "GET", "key"); err != nil || took < 100*time.Millisecond {
		t.Errorf("with a delay of 50 ms each way an answer took %v (%v)", took, err)
	}
	w.Delay(0)
	w.Hold()
	if _, err := call(200*time.Millisecond, "GET", "key"); err == nil {
		t.Error("something passed a wire that holds")
	}
	w.Release()
	if _, err := call(Deadline, "GET", "key"); err != nil {
		t.Errorf("after the release: %v", err)
	}
	reached := make(chan struct{})
	w.CutAfter("the request", func() { close(reached) })
	if _, err := call(500*time.Millisecond, "SET", "key", "the request"); err == nil {
		t.Error("the answer came although it was cut off")
	}
	<-reached
	wantValue(t, r, "key", "the request")
	if _, err := call(200*time.Millisecond, "GET", "key"); err == nil {
		t.Error("something passed behind the cut")
	}
	w.Release()
	w.Reset()
	wantWithin(t, Deadline, func() bool { _, err := call(Deadline, "GET", "key"); return err == nil })
	pipe := c.Conn()
	defer pipe.Close()
	if err := pipe.Ping(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
	w.Reset()
	if err := pipe.Ping(context.Background()).Err(); err == nil {
		t.Error("a connection survived the reset")
	}
}
