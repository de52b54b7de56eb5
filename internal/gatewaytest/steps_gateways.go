package gatewaytest

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
)

func onGateway(do func(*Gateway)) func(*scene, *args) error {
	return func(s *scene, a *args) error {
		g, err := s.gateway(a)
		if err == nil {
			do(g)
		}
		return errors.Join(err, a.done())
	}
}

func (s *scene) gateway(a *args) (*Gateway, error) {
	name, err := a.next("the gateway")
	if err != nil {
		return nil, err
	}
	g := s.gateways[name]
	if g == nil {
		return nil, fmt.Errorf("no gateway is called %q", name)
	}
	return g, nil
}

// gateway a b [--flags]: starts gateways, all with the same flags.
func (s *scene) startGateways(a *args) error {
	flags := a.flags()
	names := a.rest
	var starting sync.WaitGroup
	errs := make([]error, len(names))
	for i, name := range names {
		if s.gateways[name] != nil {
			return fmt.Errorf("gateway %s was started before: restart it", name)
		}
		g := NewGateway(s.t, s.redis, Options{Name: name, Flags: flags})
		s.gateways[name] = g
		starting.Go(func() { errs[i] = g.Restart() })
	}
	starting.Wait()
	return errors.Join(errs...)
}

// restart a: a new process of the same name, at the same address.
func (s *scene) restart(a *args) error {
	g, err := s.gateway(a)
	if err == nil {
		err = g.Restart()
	}
	return errors.Join(err, a.done())
}

// exit a 0 [within 10s]: the process ends with this code.
func (s *scene) exit(a *args) error {
	within, err1 := a.duration("within", Deadline)
	g, err2 := s.gateway(a)
	want, err3 := a.next("the exit code")
	if err := errors.Join(err1, err2, err3, a.done()); err != nil {
		return err
	}
	code, err := g.ExitCode(within)
	if err == nil && strconv.Itoa(code) != want {
		err = fmt.Errorf("exit code %d, want %s", code, want)
	}
	return err
}

// ready a, not-ready a [within 3s]: what /readyz says.
func readiness(want int) func(*scene, *args) error {
	return func(s *scene, a *args) error {
		within, err1 := a.duration("within", Deadline)
		g, err2 := s.gateway(a)
		if err := errors.Join(err1, err2, a.done()); err != nil {
			return err
		}
		return Poll(within, func() error {
			status, body, err := g.Get("/readyz")
			if err == nil && status != want {
				err = fmt.Errorf("/readyz says %d: %s", status, body)
			}
			return err
		})
	}
}

// wait-stats a active_connections 2 [within 3s]: what /stats says.
func (s *scene) waitStats(a *args) error {
	within, err1 := a.duration("within", Deadline)
	g, err2 := s.gateway(a)
	key, want, err3 := a.two("the key", "the value")
	if err := errors.Join(err1, err2, err3, a.done()); err != nil {
		return err
	}
	return Poll(within, func() error {
		stats, err := g.Stats()
		if got := fmt.Sprint(stats[key]); err == nil && got != want {
			err = fmt.Errorf("%s is %s, want %s", key, got, want)
		}
		return err
	})
}
