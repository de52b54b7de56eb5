# The same commands locally and in CI. `make test` installs what it needs with apt (scripts/setup).
.PHONY: run test lint bench fuzz chaos mutants setup

FUZZTIME ?= 10m
BENCH ?= .
FOR ?= 10m
KILLS ?= 200

run:
	go run ./cmd/gateway

setup:
	@scripts/setup

test:
	@scripts/test

lint:
	go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...
	go tool -modfile=tools/go.mod validate -multi -- docs/openapi.json
	@unformatted=$$(go tool -modfile=tools/go.mod gofumpt -l .); \
	  [ -z "$$unformatted" ] || { printf 'gofumpt would change:\n%s\n' "$$unformatted"; exit 1; }

# All benchmarks, or those that match: make bench BENCH=Cluster/stored. See docs/benchmarks.md.
bench:
	@scripts/bench '$(BENCH)'

# Breaks the safety rules one at a time, and wants a test to go red for each.
mutants:
	@scripts/mutants

# Every Fuzz function there is, FUZZTIME each, one after the other: make fuzz FUZZTIME=1m
fuzz:
	@scripts/fuzz $(FUZZTIME)

# Every fault at full length, KILLS killed gateways, and a mix of faults FOR so long: make chaos FOR=30m SEED=7
chaos:
	@scripts/chaos '$(FOR)' "$(SEED)" '$(KILLS)'
