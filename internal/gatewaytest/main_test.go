package gatewaytest

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func itoa(n int) string { return strconv.Itoa(n) }

func wantWithin(t *testing.T, within time.Duration, done func() bool) {
	t.Helper()
	err := Poll(within, func() error {
		if !done() {
			return errors.New("the condition doesn't hold")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// headerSlack is what a busy machine may add to the five seconds of a header, and less than would hide that nobody counts them.
const headerSlack = 4500 * time.Millisecond

// metric reads one figure of /metrics.
func (g *Gateway) metric(name string) (float64, error) {
	status, body, err := g.GetInternal("/metrics")
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(body)
	if m == nil {
		return 0, fmt.Errorf("status %d, no metric %s", status, name)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// blocks returns the lines of the code blocks of a language, continued lines joined.
func blocks(text, language string) []string {
	var lines []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```").FindAllStringSubmatch(text, -1) {
		joined := strings.ReplaceAll(m[1], "\\\n", " ")
		lines = append(lines, strings.Split(strings.TrimSpace(joined), "\n")...)
	}
	return lines
}
