// Command gateway runs one Chatgate gateway, or a small cluster of them for trying out.
//
// It owns the command line, the log, the signals and the exit code: main parses, wires and runs, and everything else is
// package gateway. It has two goroutines beside those, which wait for signals. docs/configuration.md lists the settings and
// the exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"github.com/alecthomas/kong"

	"chatgate/internal/gateway"
)

// Exit codes, promised to service managers.
const (
	exitOK            = 0
	exitFailure       = 1
	exitUsage         = 2
	exitDependency    = 3
	exitDrainDeadline = 4
)

// cli is the command line. The settings are flags of every command and may stand before or after its name.
type cli struct {
	Settings gateway.Config `embed:""`
	File     string         `name:"config" short:"c" placeholder:"FILE" help:"YAML file with settings ($$GATEWAY_CONFIG)."`

	Serve struct{} `cmd:"" default:"1" help:"Run one gateway. This is the default."`
	Dev   struct {
		Nodes int `default:"3" help:"Number of gateways, 1 to 16."`
	} `cmd:"" help:"Run several gateways, a balancer in front and one embedded Redis in this process."`
	Version struct{} `cmd:"" help:"Print the version."`
	Config  struct {
		Check struct{} `cmd:"" help:"Print every setting and where it comes from, or what is wrong."`
	} `cmd:"" help:"Look at the configuration."`
	Token struct {
		Gen    genCommand    `cmd:"" help:"Make a token and print it, for trying out and for tests."`
		Verify verifyCommand `cmd:"" help:"Say whose token this is and what it allows, or why it is refused. Revocations are not looked at."`
		Revoke revokeCommand `cmd:"" help:"Make tokens bad before their time, on every gateway. Needs redis.url, and the same auth settings as they have."`
	} `cmd:"" help:"Make tokens, look at them, revoke them."`
	Key struct {
		Gen keyCommand `cmd:"" help:"Make a key for the server API, and print it and its entry for api.keys."`
	} `cmd:"" help:"Make keys for the server API."`
}

// BeforeResolve is kong's hook between reading the command line and asking elsewhere for what it doesn't give.
func (c *cli) BeforeResolve(ctx *kong.Context, sources *gateway.Sources) error {
	if ctx.Command() == "version" {
		return nil // which must work with any configuration
	}
	for _, flag := range ctx.Model.Flags {
		if flag.Name == "config" {
			err := sources.Load(fmt.Sprint(ctx.FlagValue(flag)))
			c.Settings.Events.Sinks, c.Settings.API.Keys = sources.Sinks(), sources.Keys()
			return err
		}
	}
	return nil
}

func main() {
	os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// parse reads the command line, the environment and the file into c. helped: the help was printed instead, and whatever was found wrong after
// that doesn't matter.
func (c *cli) parse(args, environ []string, stdout, stderr io.Writer) (ctx *kong.Context, sources *gateway.Sources, helped bool, err error) {
	sources = gateway.NewSources(environ)
	parser, err := kong.New(c, sources, kong.Bind(sources), kong.Name("gateway"), kong.Writers(stdout, stderr),
		kong.Description("A chat gateway: clients connect to any, and reach anyone in the cluster."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true, WrapUpperBound: 120}),
		kong.Exit(func(int) { helped = true }))
	if err != nil {
		return nil, nil, false, err
	}
	ctx, err = parser.Parse(args)
	return ctx, sources, helped, err
}

// run is the command without the process around it; it returns the exit code.
func run(args, environ []string, stdout, stderr io.Writer) int {
	var c cli
	ctx, sources, helped, err := c.parse(args, environ, stdout, stderr)
	switch {
	case helped:
		return exitOK
	case err != nil:
		return complain(stderr, exitUsage, err)
	}
	switch ctx.Command() {
	case "version":
		fmt.Fprintln(stdout, version())
		return exitOK
	case "config check":
		return check(c.Settings, sources, ctx, stdout, stderr)
	case "token gen":
		return c.Token.Gen.run(c.Settings.Auth, stdout, stderr)
	case "token verify", "token verify <file>":
		return c.Token.Verify.run(c.Settings.Auth, os.Stdin, stdout, stderr)
	case "token revoke":
		return c.Token.Revoke.run(c.Settings, stdout, stderr)
	case "key gen <name>":
		return c.Key.Gen.run(stdout, stderr)
	case "dev":
		if c.Dev.Nodes < 1 || c.Dev.Nodes > 16 {
			return complain(stderr, exitUsage, errors.New("--nodes: must be 1 to 16"))
		}
		return serve(c.Settings, sources, stderr, func(ctx context.Context, log *slog.Logger, hangups <-chan os.Signal) error {
			defer onHangup(hangups, func() { log.Warn("SIGHUP: dev reads its configuration only once") })()
			return gateway.RunDev(ctx, c.Settings, c.Dev.Nodes, log)
		})
	}
	return serve(c.Settings, sources, stderr, func(ctx context.Context, log *slog.Logger, hangups <-chan os.Signal) error {
		g, err := gateway.New(c.Settings, log)
		if err != nil {
			return err
		}
		defer onHangup(hangups, func() { reload(g, args, environ, log) })()
		return g.Run(ctx)
	})
}

// reload reads the configuration again, and has the gateway take over what it can. What is wrong is logged, and then everything stays as it
// was.
func reload(g *gateway.Gateway, args, environ []string, log *slog.Logger) {
	var c cli
	_, _, _, err := c.parse(args, environ, io.Discard, io.Discard)
	var changed, restart []string
	if err == nil {
		changed, restart, err = g.Reload(c.Settings)
	}
	switch {
	case err != nil:
		log.Error("reload failed: everything stays as it was", "err", err)
	case len(restart) > 0:
		log.Warn("reloaded, and some settings need a restart", "changed", changed, "restart", restart)
	default:
		log.Info("reloaded", "changed", changed)
	}
}

// onHangup calls f for each SIGHUP, one after the other, until the function it returns is called, which waits for f.
func onHangup(hangups <-chan os.Signal, f func()) (stop func()) {
	done := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		for {
			select {
			case <-hangups:
				f()
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		waiting.Wait()
	}
}

// complain writes each line of err, marked as ours, and returns code.
func complain(stderr io.Writer, code int, err error) int {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintln(stderr, "gateway:", line)
	}
	return code
}

// check shows the settings, which parsing has found valid.
func check(cfg gateway.Config, sources *gateway.Sources, ctx *kong.Context, stdout, stderr io.Writer) int {
	given := make(map[string]bool)
	for _, path := range ctx.Path {
		if path.Flag != nil && !path.Resolved {
			given[path.Flag.Name] = true
		}
	}
	err := cfg.WriteYAML(stdout, func(name string) string {
		if given[name] {
			return "--" + name
		}
		return sources.Where(name)
	})
	if err != nil {
		return complain(stderr, exitFailure, err)
	}
	for _, warning := range cfg.Warnings() {
		fmt.Fprintln(stderr, "gateway: warning:", warning)
	}
	for _, name := range sources.UnknownEnv() {
		fmt.Fprintln(stderr, "gateway: warning: the environment variable", name, "names no setting")
	}
	return exitOK
}

// serve runs until a signal, with the log that cfg asks for.
func serve(cfg gateway.Config, sources *gateway.Sources, stderr io.Writer, run func(context.Context, *slog.Logger, <-chan os.Signal) error) int {
	log := newLogger(cfg.Log, stderr)
	// From the beginning: what isn't asked for ends a process. One that waits is enough, since each reads everything.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for _, name := range sources.UnknownEnv() {
		log.Warn("environment variable names no setting", "name", name)
	}
	ctx, stop := withSignals(log)
	defer stop()
	err := run(ctx, log, hangups)
	if err != nil {
		log.Error("gateway ended", "err", err)
	}
	return exitCode(err)
}

func exitCode(err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, gateway.ErrConfig):
		return exitUsage
	case errors.Is(err, gateway.ErrDependency):
		return exitDependency
	case errors.Is(err, gateway.ErrDrainDeadline):
		return exitDrainDeadline
	}
	return exitFailure
}

// withSignals returns a context that the first SIGTERM or interrupt ends, which drains; a second one ends the process. The
// caller must call stop, which joins the goroutine that waits.
func withSignals(log *slog.Logger) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	done := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		select {
		case s := <-signals:
			log.Info("signal: ending", "signal", s.String())
			cancel()
		case <-done:
			return
		}
		select {
		case s := <-signals:
			log.Warn("second signal: ending at once", "signal", s.String())
			os.Exit(exitFailure)
		case <-done:
		}
	})
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		waiting.Wait()
		cancel()
	}
}

func newLogger(cfg gateway.LogConfig, stderr io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.Level}
	if cfg.Format == "text" || cfg.Format == "auto" && isTerminal(stderr) {
		return slog.New(slog.NewTextHandler(stderr, options))
	}
	// "1.5s" rather than a number of nanoseconds, as in the text format.
	options.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration {
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}
	return slog.New(slog.NewJSONHandler(stderr, options))
}

// isTerminal reports whether somebody watches w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// version is what the Go toolchain recorded about this build.
func version() string {
	number, revision, modified := "unknown", "", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		number = info.Main.Version
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				revision = " " + s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = " (modified)"
			}
		}
	}
	return fmt.Sprintf("gateway %s%s%s %s %s/%s", number, revision, modified, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
