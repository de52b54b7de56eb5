package gatewaytest

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// takesCommands are the settings of gateways that take commands, and take them over soon.
var takesCommands = []string{"--api.commands=send,control", "--api.deadline=1s", "--api.takeover=3s"}

const commandStream, commandReplies, deadCommands = "cg:{cmd}:in", "cg:{cmd}:re:", "cg:{cmd}:dead"

// commandReply is one entry of a stream of answers.
type commandReply struct {
	Status int
	Key    string
	Answer struct {
		Code, Detail string
		Results      []struct {
			To, Status string
			Offset     uint64
		}
	}
}

// commandReplies reads a stream of answers: command id -> all that is said of it.
func (r *Redis) commandReplies(name string) (map[string][]commandReply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	entries, err := r.client.XRange(ctx, commandReplies+name, "-", "+").Result()
	if err != nil {
		return nil, err
	}
	all := make(map[string][]commandReply)
	for _, e := range entries {
		text := func(field string) string { s, _ := e.Values[field].(string); return s }
		var x commandReply
		if x.Status, err = strconv.Atoi(text("status")); err == nil {
			err = json.Unmarshal([]byte(text("answer")), &x.Answer)
		}
		if err != nil {
			return nil, fmt.Errorf("%v: %w", e.Values, err)
		}
		x.Key = text("key")
		all[text("command")] = append(all[text("command")], x)
	}
	return all, nil
}

// command puts a command into the stream, as a backend would, and returns its id.
func (r *Redis) command(t testing.TB, fields ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	id, err := r.client.XAdd(ctx, &redis.XAddArgs{Stream: commandStream, Values: fields}).Result()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// inHand is how many commands a gateway has taken and not done.
func (r *Redis) inHand(gateway string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	pending, err := r.client.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: commandStream, Group: "gateways", Start: "-", End: "+", Count: 1000, Consumer: gateway}).Result()
	if err != nil && strings.Contains(err.Error(), "NOGROUP") {
		err = nil
	}
	return len(pending), err
}

// commandStats are the figures of a gateway about commands.
type commandStats struct {
	Backlog, Done, Refused, Dead int
	InHand                       int `json:"in_hand"`
	TakenOver                    int `json:"taken_over"`
}

func (g *Gateway) commandStats() (commandStats, error) {
	var s struct{ Commands commandStats }
	_, body, err := g.Get("/stats")
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	return s.Commands, err
}

// wantNoCommands waits until the stream is empty, and a gateway says so.
func wantNoCommands(t testing.TB, r *Redis, g *Gateway) {
	t.Helper()
	if err := Poll(10*Deadline, func() error {
		n, err := r.Do("XLEN", commandStream)
		s, err2 := g.commandStats()
		if err != nil || err2 != nil || n != int64(0) || s.Backlog != 0 || s.InHand != 0 {
			return fmt.Errorf("%v are left, %v, %v; %+v", n, err, err2, s)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
