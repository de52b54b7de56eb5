package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
)

// RunDev runs a whole cluster in this process until ctx ends: so many gateways,
// a balancer in front of them on cfg.Listen, and one embedded Redis unless the
// configuration names another. It is for trying things out on one machine, and
// listens beyond it only when told --insecure.
func RunDev(ctx context.Context, cfg Config, nodes int, log *slog.Logger) error {
	if nodes < 1 || nodes > 16 {
		return fmt.Errorf("nodes: must be 1 to 16, not %d", nodes)
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	if !cfg.Insecure && !onLoopback(cfg.Listen) {
		return fmt.Errorf("%w: listen: dev is for this machine; to listen beyond loopback say --insecure", ErrConfig)
	}
	if cfg.ProxyProtocol {
		return fmt.Errorf("%w: proxy-protocol: not in dev, whose own balancer doesn't speak it", ErrConfig)
	}
	gateways, release, err := devGateways(cfg, nodes, log)
	defer release()
	if err != nil {
		return err
	}
	front, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		for _, g := range gateways {
			g.closeFiles()
		}
		return err
	}

	// The balancer outlives the gateways, so that clients are told why they go.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	backends := make([]string, nodes)
	errs := make([]error, nodes+1)
	var running, balancing sync.WaitGroup
	for i, g := range gateways {
		backends[i] = g.Addr().String()
		running.Go(func() {
			defer cancel() // one that fails ends the cluster
			errs[i] = g.Run(ctx)
		})
	}
	balancing.Go(func() {
		defer cancel()
		errs[nodes] = NewBalancer(front, backends, log).Run(life)
	})
	log.Info("cluster is up", "nodes", nodes, "url", cfg.scheme()+"://"+front.Addr().String()+"/")
	running.Wait()
	stop()
	balancing.Wait()
	return errors.Join(errs...)
}

// devGateways makes the gateways and what they share. release is to be called
// when they have ended, also after an error.
func devGateways(cfg Config, nodes int, log *slog.Logger) (gateways []*Gateway, release func(), err error) {
	release = func() {}
	var shared *embedded
	if cfg.Redis.Embedded() {
		shared = startEmbedded()
		release = shared.close
	}
	// A client costs three files here: its own socket and both ends of the
	// balancer's.
	limit := ConnectionLimit(cfg.Limits.MaxConnections.Number(OpenFileLimit(), 3*nodes))
	for i := range nodes {
		one := cfg
		one.Name = fmt.Sprintf("node-%d", i+1)
		one.Listen, one.Limits.MaxConnections = "127.0.0.1:0", limit
		if one.InternalListen != "" {
			one.InternalListen = "127.0.0.1:0"
		}
		if cfg.PageOn() {
			one.Page = "on"
		}
		var b *backend
		if shared != nil {
			b = shared.connect(cfg.Redis)
		} else {
			b, err = connect(context.Background(), cfg.Redis, log)
		}
		var g *Gateway
		if err == nil {
			g, err = assemble(one, b, log)
		}
		if err == nil {
			g.local = g.local && onLoopback(cfg.Listen) // it is called by the balancer's name
		}
		if err != nil {
			for _, g := range gateways {
				g.closeFiles()
			}
			return nil, release, err
		}
		gateways = append(gateways, g)
	}
	return gateways, release, nil
}
