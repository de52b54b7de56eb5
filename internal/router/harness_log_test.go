package router

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

// stream returns the offsets of what the address's stream holds, and its frames.
func (c *cluster) stream(user protocol.UserID) (offsets []uint64, frames []string) {
	c.t.Helper()
	entries, err := c.redis.Client().XRange(context.Background(), keyspace.Stream(protocol.UserAddress(user)), "-", "+").Result()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		off, _, _ := strings.Cut(e.ID, "-")
		n, err := strconv.ParseUint(off, 10, 64)
		if err != nil {
			c.t.Fatal(err)
		}
		offsets = append(offsets, n)
		frames = append(frames, fmt.Sprint(e.Values["1"]))
	}
	return offsets, frames
}

// wantStream checks what is stored for the user, by message id, from offset 1 on.
func (c *cluster) wantStream(user protocol.UserID, want ...string) {
	c.t.Helper()
	offsets, frames := c.stream(user)
	wantNoHoles(c.t, "the stream of "+string(user), offsets, 1)
	var got []string
	for _, f := range frames {
		var m struct{ ID string }
		// A stored frame lacks only its position and the brace behind it.
		if err := json.Unmarshal([]byte(f+"}"), &m); err != nil {
			c.t.Fatalf("stored frame %q: %v", f, err)
		}
		got = append(got, m.ID)
	}
	if !slices.Equal(got, want) {
		c.t.Fatalf("stored for %s: %v, want %v", user, got, want)
	}
}

// A head is field h of a log's hash, as keyspace/lua/log.lua describes it.
type head struct {
	epoch    string
	top      uint64
	line     string
	gen      int
	count    int
	since    int64 // s
	extended int64 // s
	cursor   string
}

func (c *cluster) head(user protocol.UserID) head {
	c.t.Helper()
	text, err := c.redis.Client().HGet(context.Background(), keyspace.Log(protocol.UserAddress(user)), "h").Result()
	if err != nil {
		c.t.Fatal(err)
	}
	var h head
	if _, err := fmt.Sscan(text, &h.epoch, &h.top, &h.line, &h.gen, &h.count, &h.since, &h.extended, &h.cursor); err != nil {
		c.t.Fatalf("head %q: %v", text, err)
	}
	return h
}

func (c *cluster) setHead(user protocol.UserID, h head) {
	c.t.Helper()
	text := fmt.Sprintf("%s %d %s %d %d %d %d %s", h.epoch, h.top, h.line, h.gen, h.count, h.since, h.extended, h.cursor)
	if err := c.redis.Client().HSet(context.Background(), keyspace.Log(protocol.UserAddress(user)), "h", text).Err(); err != nil {
		c.t.Fatal(err)
	}
}
