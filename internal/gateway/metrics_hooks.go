package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"chatgate/internal/hook"
)

var (
	hookCallsDesc   = prometheus.NewDesc("gateway_hook_decisions_total", "Questions to the backend, by how they ended.", []string{"hook", "outcome"}, nil)
	hookSecondsDesc = prometheus.NewDesc("gateway_hook_decision_seconds", "How long a connection waited for a decision.", []string{"hook"}, nil)
	hookOpenDesc    = prometheus.NewDesc("gateway_hook_open", "1 while the backend is not asked, because it answered none of the last questions.", []string{"hook"}, nil)
	hookWaitingDesc = prometheus.NewDesc("gateway_hook_waiting", "Questions that are being asked.", []string{"hook"}, nil)
)

var hookDescs = []*prometheus.Desc{hookCallsDesc, hookSecondsDesc, hookOpenDesc, hookWaitingDesc}

// collectHooks tells of the hooks that decide.
func collectHooks(ch chan<- prometheus.Metric, all []hook.DecisionStats) {
	for _, s := range all {
		name, count := string(s.Question), uint64(0)
		for outcome, n := range s.Outcomes {
			count += n
			ch <- prometheus.MustNewConstMetric(hookCallsDesc, prometheus.CounterValue, float64(n), name, outcome)
		}
		ch <- prometheus.MustNewConstHistogram(hookSecondsDesc, count, s.Seconds, s.Buckets, name)
		ch <- prometheus.MustNewConstMetric(hookOpenDesc, prometheus.GaugeValue, oneIf(s.Open), name)
		ch <- prometheus.MustNewConstMetric(hookWaitingDesc, prometheus.GaugeValue, float64(s.Waiting), name)
	}
}
