//go:build !race

package gatewaytest_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"chatgate/internal/gatewaytest"
)

// bed is what one benchmark runs on, every part of it a process of its own.
type bed struct {
	// Immutable after startBed.
	b        *testing.B
	report   *report
	redis    *gatewaytest.RedisNode
	gateways []*gatewaytest.Gateway // a, b, …
	echo     *child
	echoAddr string
	loads    [2]*child

	processes map[string]*gatewaytest.Process // all of them, by their names in the figures
}

// startBed starts a Redis, so many gateways, the echo, and two processes of clients.
func startBed(b *testing.B, r *report, gateways int, flags ...string) *bed {
	b.Helper()
	redis := gatewaytest.StartRedis(b)
	t := &bed{b: b, report: r, redis: redis.Nodes[0], processes: make(map[string]*gatewaytest.Process)}
	t.processes["redis"] = t.redis.Process
	for i := range gateways {
		name := string(rune('a' + i))
		g := gatewaytest.StartGateway(b, redis, gatewaytest.Options{Name: name, Flags: append(slices.Clone(unlimited), flags...)})
		t.gateways = append(t.gateways, g)
		t.processes[name] = g.Process
	}
	t.echo = startChild(b, "echo")
	t.processes["echo"] = t.echo.Process
	t.echo.call(b, "address", nothing{}, &t.echoAddr)
	for i := range t.loads {
		t.loads[i] = startChild(b, "load")
		t.processes[fmt.Sprintf("load %d", i)] = t.loads[i].Process
	}
	r.header = describe(t.info("server")["redis_version"])
	return t
}

// usage is the processor time of each process, and of the whole computer, up to a moment.
type usage struct {
	at    time.Time
	each  map[string]time.Duration
	total time.Duration // used by anybody
}

func (t *bed) usage() usage {
	t.b.Helper()
	u := usage{at: time.Now(), each: make(map[string]time.Duration)}
	for name, p := range t.processes {
		spent, err := p.CPU()
		if err != nil {
			t.b.Fatal(err)
		}
		u.each[name] = spent
	}
	total, err := busyTime()
	if err != nil {
		t.b.Fatal(err)
	}
	u.total = total
	return u
}

// since is what was used between two moments.
func (u usage) since(before usage) usage {
	d := usage{each: make(map[string]time.Duration), total: u.total - before.total}
	for name, spent := range u.each {
		d.each[name] = spent - before.each[name]
	}
	return d
}

// of sums the named processes.
func (u usage) of(names ...string) time.Duration {
	var sum time.Duration
	for _, name := range names {
		sum += u.each[name]
	}
	return sum
}

// others is the share of the computer's processors that was used by nobody named here, in percent: how noisy it was.
func (u usage) others(wall time.Duration) float64 {
	strangers := u.total - u.of(slices.Collect(maps.Keys(u.each))...)
	return 100 * max(0, strangers.Seconds()) / wall.Seconds() / float64(runtime.NumCPU())
}

// busyTime is the time all processors of the computer were not idle. See proc_stat(5).
func busyTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var busy int64
	for i, field := range strings.Fields(line)[1:9] {
		const idle, ioWait = 3, 4
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		if i != idle && i != ioWait {
			busy += ticks
		}
	}
	return time.Duration(busy) * time.Second / 100, nil
}

func (t *bed) resident(p *gatewaytest.Process) float64 {
	t.b.Helper()
	n, err := p.RSS()
	if err != nil {
		t.b.Fatal(err)
	}
	return float64(n)
}

// redisUse is what Redis counted since its statistics were reset. Only its processor time goes on counting.
type redisUse struct {
	calls, micros map[string]float64 // by command; those of a script count for it and for themselves
	cpu           float64            // us
}

func (t *bed) resetRedis() redisUse {
	t.b.Helper()
	if _, err := t.redis.Do("CONFIG", "RESETSTAT"); err != nil {
		t.b.Fatal(err)
	}
	return t.redisUse()
}

func (t *bed) redisUse() redisUse {
	t.b.Helper()
	commands, cpu := t.info("commandstats"), t.info("cpu")
	u := redisUse{calls: make(map[string]float64), micros: make(map[string]float64)}
	for key, values := range commands {
		name, isCommand := strings.CutPrefix(key, "cmdstat_")
		if !isCommand {
			continue
		}
		for _, field := range strings.Split(values, ",") {
			switch what, value, _ := strings.Cut(field, "="); what {
			case "calls":
				u.calls[name] = t.parse(value)
			case "usec":
				u.micros[name] = t.parse(value)
			}
		}
	}
	u.cpu = 1e6 * (t.parse(cpu["used_cpu_sys"]) + t.parse(cpu["used_cpu_user"]))
	return u
}

// info is one section of INFO.
func (t *bed) info(section string) map[string]string {
	t.b.Helper()
	text, err := t.redis.Do("INFO", section)
	if err != nil {
		t.b.Fatal(err)
	}
	fields := make(map[string]string)
	for line := range strings.Lines(text.(string)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[key] = value
		}
	}
	return fields
}

func (t *bed) parse(text string) float64 {
	t.b.Helper()
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.b.Fatal(err)
	}
	return v
}

// since is the use after another moment since the same reset.
func (u redisUse) since(before redisUse) redisUse {
	return redisUse{calls: u.calls, micros: u.micros, cpu: u.cpu - before.cpu}
}

// addRedis adds what Redis did for each thing done, leaving out what it did less than once in 2,000 times: pulses, and this harness.
func (s *samples) addRedis(u redisUse, done float64) {
	s.add("redis-used-us", u.cpu/done)
	for _, name := range slices.Sorted(maps.Keys(u.calls)) {
		if calls := u.calls[name] / done; calls >= 0.0005 && !harnessCommand.MatchString(name) {
			s.add("redis-calls-"+name, calls)
			s.add("redis-time-"+name, u.micros[name]/done)
		}
	}
}

var harnessCommand = regexp.MustCompile(`^(config|ping)`)

// profile fetches each gateway's processor profile in the background, and then its memory profile, when they are wanted (-profiles).
// The function it returns waits for them.
func (t *bed) profile(name string, length time.Duration) (wait func()) {
	if *benchProfiles == "" || name == "" {
		return func() {}
	}
	name = strings.NewReplacer("/", "-", "=", "").Replace(strings.TrimPrefix(name, "BenchmarkCluster/"))
	done := make(chan error, len(t.gateways))
	for _, g := range t.gateways {
		go func() {
			pages := "http://" + g.Internal + "/debug/pprof/"
			file := filepath.Join(*benchProfiles, name+"."+g.Name)
			err := fetch(fmt.Sprintf("%sprofile?seconds=%d", pages, max(1, int(length.Seconds()))), file+".cpu")
			done <- errors.Join(err, fetch(pages+"allocs", file+".allocs"), fetch(pages+"heap", file+".heap"))
		}()
	}
	return func() {
		for range t.gateways {
			if err := <-done; err != nil {
				t.b.Error(err)
			}
		}
	}
}

// fetch keeps a page in a file.
func fetch(url, file string) error {
	client := http.Client{Timeout: callLimit, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, answer.Body)
	return errors.Join(err, f.Close())
}
