//go:build !race

package gatewaytest_test

import (
	"bufio"
	"cmp"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// samples are the figures of one benchmark: for each unit a value from every round.
type samples struct {
	units  []string // in the order they came
	values map[string][]float64
}

func (s *samples) add(unit string, value float64) {
	if s.values == nil {
		s.values = make(map[string][]float64)
	}
	if _, known := s.values[unit]; !known {
		s.units = append(s.units, unit)
	}
	s.values[unit] = append(s.values[unit], value)
}

// report gives benchstat the median of each unit.
func (s *samples) report(b *testing.B) {
	b.ReportMetric(0, "ns/op") // the length of all rounds tells nothing
	for _, unit := range s.units {
		b.ReportMetric(median(s.values[unit]), unit)
	}
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// report collects the samples of all benchmarks of a run, those of repeated ones (-count) together, and prints them for a reader.
type report struct {
	all    map[string]*samples // by the benchmark's name
	header string
}

func (r *report) of(name string) *samples {
	if r.all[name] == nil {
		r.all[name] = &samples{}
	}
	return r.all[name]
}

// take reports the samples of a benchmark and keeps them for the table.
func (r *report) take(b *testing.B, name string, s *samples) {
	s.report(b)
	kept := r.of(name)
	for _, unit := range s.units {
		for _, v := range s.values[unit] {
			kept.add(unit, v)
		}
	}
}

// A column shows one unit, divided by scale.
type column struct {
	head, unit string
	scale      float64 // 0: 1
	digits     int
	spread     bool // also the least and the most
}

func (c column) cell(s *samples) string {
	values := s.values[c.unit]
	if len(values) == 0 {
		return "-"
	}
	scale := cmp.Or(c.scale, 1)
	text := strconv.FormatFloat(median(values)/scale, 'f', c.digits, 64)
	if c.spread && len(values) > 1 {
		text += fmt.Sprintf(" (%.*f-%.*f)", c.digits, slices.Min(values)/scale, c.digits, slices.Max(values)/scale)
	}
	return text
}

// A line is one benchmark, and the mark it is to meet.
type line struct{ name, work, mark string }

// table prints what was measured of the lines, in Markdown; nothing when none was.
func (r *report) table(title string, columns []column, lines []line) {
	rows := [][]string{{"work"}, {"---"}}
	for _, c := range columns {
		rows[0] = append(rows[0], c.head)
		rows[1] = append(rows[1], "---")
	}
	rows[0], rows[1] = append(rows[0], "mark"), append(rows[1], "---")
	for _, l := range lines {
		s := r.all[l.name]
		if s == nil {
			continue
		}
		row := []string{l.work}
		for _, c := range columns {
			row = append(row, c.cell(s))
		}
		rows = append(rows, append(row, l.mark))
	}
	if len(rows) > 2 {
		fmt.Printf("\n%s\n\n", title)
		printRows(rows)
	}
}

// printRows aligns the cells, except for the rule under the head.
func printRows(rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	for _, row := range rows {
		for i, cell := range row {
			fill := " "
			if cell == "---" {
				fill = "-"
			}
			fmt.Printf("| %s%s ", cell, strings.Repeat(fill, width[i]-len([]rune(cell))))
		}
		fmt.Println("|")
	}
}

// describe says where the figures come from.
func describe(redisVersion string) string {
	model, kernel := "", ""
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
			}
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = strings.TrimSpace(string(text))
	}
	return fmt.Sprintf("%d processors (%s), Linux %s, %s, Redis %s", runtime.NumCPU(), model, kernel, runtime.Version(), redisVersion)
}

func (r *report) print() {
	r.table("Processor time of gateways and Redis for each message delivered, and each heartbeat answered, in us",
		[]column{
			{head: "all", unit: "cpu-us", digits: 1, spread: true},
			{head: "sender's gateway", unit: "gateway-a-us", digits: 1},
			{head: "receiver's", unit: "gateway-b-us", digits: 1},
			{head: "Redis", unit: "redis-us", digits: 1},
			{head: "echo", unit: "echo-us", digits: 1, spread: true},
			{head: "x echo", unit: "x-echo", digits: 2, spread: true},
			{head: "a second", unit: "each/s"},
			{head: "p50 ms", unit: "p50-us", scale: 1e3, digits: 2},
			{head: "p99 ms", unit: "p99-us", scale: 1e3, digits: 2},
			{head: "used by others %", unit: "others-%"},
		}, []line{
			{"stored/inflight=16", "stored, 16 in flight", "30 us, 3.2 x echo"},
			{"stored/inflight=1", "stored, 1 in flight", "75 us, 5 x echo"},
			{"ephemeral/inflight=16", "not stored, 16 in flight", "18 us, 2 x echo"},
			{"ephemeral/inflight=1", "not stored, 1 in flight", "40 us"},
			{"events=envelope/inflight=16", "stored, 16 in flight, with an event", ""},
			{"events=content/inflight=16", "the same, with the content in it", ""},
			{"heartbeat/rate=2000", "heartbeat with presence refresh, 2,000/s", "20 us"},
			{"heartbeat/rate=10000", "heartbeat with presence refresh, 10,000/s", "20 us"},
		})
	r.table("Processor time of three gateways and Redis for each delivery in a room, in us; the latency is until the last member has it",
		[]column{
			{head: "all", unit: "cpu-us", digits: 2, spread: true},
			{head: "gateways", unit: "gateway-us", digits: 2},
			{head: "Redis", unit: "redis-us", digits: 3},
			{head: "echo", unit: "echo-us", digits: 1, spread: true},
			{head: "x echo", unit: "x-echo", digits: 2, spread: true},
			{head: "deliveries a second", unit: "each/s"},
			{head: "p50 ms", unit: "p50-us", scale: 1e3, digits: 1},
			{head: "p99 ms", unit: "p99-us", scale: 1e3, digits: 1},
			{head: "used by others %", unit: "others-%"},
		}, roomLines())
	r.table("Asking for the presence of many users",
		[]column{
			{head: "p50 ms", unit: "p50-us", scale: 1e3, digits: 1, spread: true},
			{head: "slowest of a round ms", unit: "max-us", scale: 1e3, digits: 1},
			{head: "gateways and Redis, CPU ms", unit: "cpu-us", scale: 1e3, digits: 1},
			{head: "Redis, CPU ms", unit: "redis-us", scale: 1e3, digits: 1},
			{head: "Redis commands", unit: "redis-commands"},
		}, presenceLines())
	r.table("A message through the server API: processor time of the gateway and Redis for each call, in us; nobody is connected",
		[]column{
			{head: "all", unit: "cpu-us", digits: 1, spread: true},
			{head: "gateway", unit: "gateway-us", digits: 1},
			{head: "Redis", unit: "redis-us", digits: 1},
			{head: "for each receiver", unit: "receiver-us", digits: 1},
			{head: "net/http echo", unit: "echo-us", digits: 1, spread: true},
			{head: "x echo", unit: "x-echo", digits: 2, spread: true},
			{head: "calls a second", unit: "each/s"},
			{head: "p50 ms", unit: "p50-us", scale: 1e3, digits: 2},
			{head: "p99 ms", unit: "p99-us", scale: 1e3, digits: 2},
			{head: "used by others %", unit: "others-%"},
		}, callLines())
	r.table("A connection: processor time to connect and register, in us, and memory at rest (RSS), in KB",
		[]column{
			{head: "connect", unit: "connect-us", digits: 1},
			{head: "gateway", unit: "gateway-us", digits: 1},
			{head: "Redis", unit: "redis-us", digits: 1},
			{head: "echo's", unit: "echo-connect-us", digits: 1},
			{head: "x echo", unit: "connect-x-echo", digits: 2},
			{head: "RSS", unit: "rss-B/conn", scale: 1024, digits: 2},
			{head: "after a GC", unit: "collected-B/conn", scale: 1024, digits: 2},
			{head: "echo's RSS", unit: "echo-rss-B/conn", scale: 1024, digits: 2},
			{head: "after a GC", unit: "echo-collected-B/conn", scale: 1024, digits: 2},
			{head: "idle CPU ms/s", unit: "idle-ms/s", digits: 1},
			{head: "used by others %", unit: "others-%"},
		}, []line{
			{"connect/inflight=1", "connect + register, one at a time", ""},
			{"idle", fmt.Sprintf("%d connections, %d connecting at a time", *benchConnections, connectors), "130 us, 7 KB"},
		})
	r.printRedis()
	if r.header != "" {
		fmt.Printf("\n%s. %d rounds of %v; medians, with the least and the most in brackets.\n\n", r.header, *benchRounds, *benchRound)
	}
}

// printRedis prints the commands behind each thing done, the most expensive first.
func (r *report) printRedis() {
	rows := [][]string{{"command"}, {"---"}}
	var columns []*samples
	cost := make(map[string]float64) // of a command, the highest of all columns
	for _, l := range []line{
		{name: "stored/inflight=16", work: "stored, 16 in flight"},
		{name: "stored/inflight=1", work: "stored, 1 in flight"},
		{name: "idle", work: "connect"},
		{name: "heartbeat/rate=2000", work: "heartbeat, 2,000/s"},
	} {
		s := r.all[l.name]
		if s == nil {
			continue
		}
		columns = append(columns, s)
		rows[0], rows[1] = append(rows[0], l.work+": calls", "us"), append(rows[1], "---", "---")
		for unit, values := range s.values {
			if name, ok := strings.CutPrefix(unit, "redis-time-"); ok {
				cost[name] = max(cost[name], median(values))
			}
		}
	}
	if len(columns) == 0 {
		return
	}
	maps.DeleteFunc(cost, func(_ string, us float64) bool { return us < 0.005 })
	for _, name := range slices.SortedFunc(maps.Keys(cost), func(x, y string) int {
		return cmp.Or(cmp.Compare(cost[y], cost[x]), strings.Compare(x, y))
	}) {
		row := []string{name}
		for _, s := range columns {
			row = append(row, column{unit: "redis-calls-" + name, digits: 3}.cell(s), column{unit: "redis-time-" + name, digits: 2}.cell(s))
		}
		rows = append(rows, row)
	}
	used := []string{"used_cpu of Redis"}
	for _, s := range columns {
		used = append(used, "", column{unit: "redis-used-us", digits: 2}.cell(s))
	}
	fmt.Print("\nRedis for each thing done (INFO commandstats; the time of evalsha includes the script's commands)\n\n")
	printRows(append(rows, used))
}
