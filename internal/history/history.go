package history

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"chatgate/internal/keyspace"
	"chatgate/internal/protocol"
)

//go:embed lua/read.lua
var readSource string

//go:embed lua/keep.lua
var keepSource string

// ErrUnavailable says that Redis did not answer in time. Every call of this
// package may be repeated.
var ErrUnavailable = errors.New("history: redis unavailable")

// Config is what a Reader needs to know.
type Config struct {
	// Layout is how the keyspace is grouped.
	Layout keyspace.Layout
	// Timeout bounds each call to Redis.
	Timeout time.Duration
	// PageBytes bounds the frames of one page, so that it fits one frame to a
	// client; a single larger message still comes.
	PageBytes int
	// LogTTL is how long positions and cursors outlive their last use.
	LogTTL time.Duration
	// Devices is how many devices of a user are remembered.
	Devices int
}

// DefaultConfig returns the figures of docs/redis-model.md, without the layout.
func DefaultConfig() Config {
	return Config{Timeout: time.Second, PageBytes: 56 << 10, LogTTL: 37 * 24 * time.Hour, Devices: 64}
}

// Reader reads logs.
type Reader struct {
	// Immutable after New.
	cfg        Config
	client     redis.UniversalClient
	read, keep *redis.Script
}

// New returns a Reader.
func New(client redis.UniversalClient, cfg Config) *Reader {
	return &Reader{
		cfg: cfg, client: client,
		read: redis.NewScript(cfg.Layout.Script(readSource)), keep: redis.NewScript(cfg.Layout.Script(keepSource)),
	}
}

// Log is the head of a log.
type Log struct {
	Epoch string
	// First is the oldest offset kept, Top the newest given; First is Top+1 when
	// nothing is kept.
	First, Top uint64
	// Rolls are the epochs before, newest first, with where each ended: what was
	// given above that was lost with a Redis.
	Rolls []protocol.Position
}

// Message is one message of a log.
type Message struct {
	Offset uint64
	Time   int64  // when Redis stored it, ms since 1970
	Frame  string // as protocol.AppendMessageHead made it, without its position
}

// Newest is an offset above every one there is, for Before.
const Newest = 1<<53 - 1

// Page is a stretch of a log.
type Page struct {
	Log
	// Messages are ascending, without a hole between them unless one was trimmed.
	Messages []Message
	// More says that the stretch goes on in the direction that was asked.
	More bool
}

// After returns at most limit messages above an offset.
func (r *Reader) After(ctx context.Context, a protocol.Address, offset uint64, limit int) (Page, error) {
	return r.page(ctx, a, "a", offset, limit)
}

// Before returns at most limit messages below an offset, those next to it.
func (r *Reader) Before(ctx context.Context, a protocol.Address, offset uint64, limit int) (Page, error) {
	p, err := r.page(ctx, a, "b", offset, limit)
	for i, j := 0, len(p.Messages)-1; i < j; i, j = i+1, j-1 {
		p.Messages[i], p.Messages[j] = p.Messages[j], p.Messages[i]
	}
	return p, err
}

func (r *Reader) page(ctx context.Context, a protocol.Address, direction string, offset uint64, limit int) (Page, error) {
	// A client may ask with any number; scripts count exactly up to 2^53.
	offset = min(offset, Newest)
	v, err := r.run(ctx, r.read, []string{keyspace.Log(a), keyspace.Stream(a)},
		[]any{protocol.NewEpoch(), r.cfg.LogTTL.Milliseconds(), r.cfg.PageBytes, direction, offset, limit})
	if err != nil {
		return Page{}, err
	}
	pages, err := parsePages(v, 1)
	if err != nil {
		return Page{}, err
	}
	return pages[0], nil
}

// headsBatch is how many logs one call of AllHeads looks at.
const headsBatch = 64

// AllHeads returns the heads of any logs, in the order asked, with as few calls as
// their groups allow.
func (r *Reader) AllHeads(ctx context.Context, addresses ...protocol.Address) ([]Log, error) {
	byGroup := make(map[int][]int) // the places of its addresses
	for i, a := range addresses {
		g := r.cfg.Layout.GroupIndex(a)
		byGroup[g] = append(byGroup[g], i)
	}
	out := make([]Log, len(addresses))
	for _, places := range byGroup {
		for some := range slices.Chunk(places, headsBatch) {
			asked := make([]protocol.Address, len(some))
			for i, at := range some {
				asked[i] = addresses[at]
			}
			heads, err := r.Heads(ctx, asked...)
			if err != nil {
				return nil, err
			}
			for i, at := range some {
				out[at] = heads[i]
			}
		}
	}
	return out, nil
}

// Heads returns the heads of logs of one group (on Cluster: one partition), in
// the order asked.
func (r *Reader) Heads(ctx context.Context, addresses ...protocol.Address) ([]Log, error) {
	keys := make([]string, 0, 2*len(addresses))
	args := []any{protocol.NewEpoch(), r.cfg.LogTTL.Milliseconds(), r.cfg.PageBytes}
	for _, a := range addresses {
		keys = append(keys, keyspace.Log(a), keyspace.Stream(a))
		args = append(args, "-", 0, 0)
	}
	v, err := r.run(ctx, r.read, keys, args)
	if err != nil {
		return nil, err
	}
	pages, err := parsePages(v, len(addresses))
	if err != nil {
		return nil, err
	}
	logs := make([]Log, len(pages))
	for i := range pages {
		logs[i] = pages[i].Log
	}
	return logs, nil
}

func (r *Reader) run(ctx context.Context, s *redis.Script, keys []string, args []any) ([]any, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	v, err := s.Run(ctx, r.client, keys, args...).Slice()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return v, nil
}

func parsePages(v []any, n int) ([]Page, error) {
	if len(v) != n {
		return nil, fmt.Errorf("history: read answered %d logs for %d", len(v), n)
	}
	pages := make([]Page, n)
	for i := range v {
		if err := pages[i].parse(v[i]); err != nil {
			return nil, err
		}
	}
	return pages, nil
}

func (p *Page) parse(v any) error {
	f, ok := v.([]any)
	if !ok || len(f) != 6 {
		return fmt.Errorf("history: read answered %T", v)
	}
	var err1, err2 error
	p.Epoch = fmt.Sprint(f[0])
	p.Top, err1 = strconv.ParseUint(fmt.Sprint(f[1]), 10, 64)
	p.First, err2 = strconv.ParseUint(fmt.Sprint(f[2]), 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("history: read answered: %w", err)
	}
	for roll := range strings.FieldsSeq(fmt.Sprint(f[3])) {
		epoch, top, _ := strings.Cut(roll, ":")
		n, err := strconv.ParseUint(top, 10, 64)
		if err != nil {
			return fmt.Errorf("history: a roll is %q", roll)
		}
		p.Rolls = append(p.Rolls, protocol.Position{Epoch: epoch, Offset: n})
	}
	p.More = f[4] == int64(1)
	entries, _ := f[5].([]any)
	p.Messages = make([]Message, 0, len(entries)/2)
	for i := 0; i+1 < len(entries); i += 2 {
		m := Message{Frame: fmt.Sprint(entries[i+1])}
		offset, ms, _ := strings.Cut(fmt.Sprint(entries[i]), "-")
		m.Offset, err1 = strconv.ParseUint(offset, 10, 64)
		m.Time, err2 = strconv.ParseInt(ms, 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("history: an entry's id: %w", err)
		}
		p.Messages = append(p.Messages, m)
	}
	return nil
}

// Cursor is how far one device of a user has kept what it got of an address: the
// user's own, or a room.
type Cursor struct {
	Address protocol.Address
	User    protocol.UserID
	Device  protocol.DeviceID
	At      protocol.Position
}

// maxOffset is above all offsets there are: scripts count in doubles, which are exact up to here. The embedded Redis reads no larger
// number than an int64.
const maxOffset = 1 << 53

// Keep moves cursors forward: one call for each group they are in. It returns how
// many moved; one that stands further, or whose position is not of the log, stays.
func (r *Reader) Keep(ctx context.Context, cursors ...Cursor) (moved int, err error) {
	groups := make(map[int][]Cursor)
	for _, c := range cursors {
		if c.At.Offset > maxOffset {
			continue // a client may say so, and the script would fail for all the others
		}
		i := r.cfg.Layout.GroupIndex(c.Address)
		groups[i] = append(groups[i], c)
	}
	var errs []error
	for _, group := range groups {
		n, err := r.keepGroup(ctx, group)
		moved += n
		errs = append(errs, err)
	}
	return moved, errors.Join(errs...)
}

func (r *Reader) keepGroup(ctx context.Context, cursors []Cursor) (moved int, err error) {
	keys := make([]string, 0, 2*len(cursors))
	args := []any{r.cfg.LogTTL.Milliseconds(), r.cfg.Devices}
	for _, c := range cursors {
		keys = append(keys, keyspace.Cursors(c.Address, c.User), keyspace.Log(c.Address))
		args = append(args, string(c.Device), c.At.Epoch, c.At.Offset)
	}
	v, err := r.run(ctx, r.keep, keys, args)
	if err != nil {
		return 0, err
	}
	for _, x := range v {
		if x == int64(1) {
			moved++
		}
	}
	return moved, nil
}

// Kept returns how far a device of a user has kept what it got of each address, in
// the order asked; nil: never seen there. One round trip (on Cluster, one for each
// master).
func (r *Reader) Kept(ctx context.Context, u protocol.UserID, d protocol.DeviceID, addresses ...protocol.Address) ([]*protocol.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	cmds := make([]*redis.StringCmd, len(addresses))
	if _, err := r.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, a := range addresses {
			cmds[i] = p.HGet(ctx, keyspace.Cursors(a, u), string(d))
		}
		return nil
	}); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	out := make([]*protocol.Position, len(addresses))
	for i, cmd := range cmds {
		if err := cmd.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		out[i] = parseCursor(cmd.Val())
	}
	return out, nil
}

// parseCursor reads what keep.lua wrote; nil: nothing that can be read.
func parseCursor(s string) *protocol.Position {
	f := strings.Fields(s)
	if len(f) != 3 {
		return nil
	}
	offset, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return nil
	}
	return &protocol.Position{Epoch: f[0], Offset: offset}
}
