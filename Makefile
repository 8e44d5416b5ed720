# Carillon's targets. `make help` lists them.
#
# goolm is the pure Go end-to-end encryption of the Matrix client library: without
# the tag a build would need the C library olm. nodynamic builds the decoder of AVIF in;
# without the tag it would need a C library too.

TAGS        := goolm,nodynamic
GO          ?= go
GOFUMPT     := mvdan.cc/gofumpt@v0.12.0
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS     := -s -w -X main.version=$(VERSION)
FUZZTIME    ?= 30s
BENCH       ?= .
DATA        ?= ./data

export CGO_ENABLED ?= 0
export GOFLAGS := -buildvcs=false $(GOFLAGS)

# Packages whose tests open a database run a second time on PostgreSQL.
DB_TESTS = $$(grep -rlE --include='*_test.go' 'sqldbtest|hstest|CARILLON_TEST_POSTGRES' homeserver appservice bridges cmd test 2>/dev/null | xargs -r -n1 dirname | sort -u | sed 's,^,./,' | tr '\n' ' ')

.PHONY: help build run provinces test test-sqlite test-postgres soak soak-small race check fmt fuzz bench complement interop generate clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

build: ## the binary, in bin/carillon
	$(GO) build -tags $(TAGS) -trimpath -ldflags '$(LDFLAGS)' -o bin/carillon ./cmd/carillon

run: build ## build and start everything with a demo company, data in ./data
	./bin/carillon serve --demo --data $(DATA)

provinces: ## one company over three sites on this machine (examples/provinces)
	examples/provinces/run

test: ## the whole suite on SQLite, then what uses a database on PostgreSQL, then a small soak
	@test/pg/with-postgres true
	@test/clients/tools
	CARILLON_TEST_CLIENTS=1 $(MAKE) --no-print-directory test-sqlite
	CARILLON_TEST_CLIENTS=1 $(MAKE) --no-print-directory test-postgres
	$(MAKE) --no-print-directory soak-small

test-sqlite: ## the whole suite on SQLite
	CARILLON_TEST_POSTGRES= $(GO) test -tags $(TAGS) -timeout 10m ./...

test-postgres: ## what uses a database, on a throw-away PostgreSQL
	test/pg/with-postgres $(GO) test -tags $(TAGS) -timeout 10m $(DB_TESTS)

soak-small: ## three sites, one on PostgreSQL, for two minutes; part of the whole suite, after all else
	CARILLON_SOAK_SITES=3 CARILLON_SOAK_PEOPLE=300 CARILLON_SOAK_ROOMS=12 CARILLON_SOAK_TIME=$(or $(TIME),90s) \
		test/pg/with-postgres $(GO) test -tags $(TAGS) -count=1 -v -timeout 10m -run '^TestSoak$$' ./test/soak

soak: ## sixteen sites and 7,000 people for TIME (20m); the report is bin/soak.md (docs/soak.md)
	@mkdir -p bin
	CARILLON_SOAK_SITES=$(or $(SITES),16) CARILLON_SOAK_PEOPLE=$(or $(PEOPLE),7000) CARILLON_SOAK_ROOMS=60 CARILLON_SOAK_RATE=$(or $(RATE),12) \
		CARILLON_SOAK_TIME=$(or $(TIME),20m) CARILLON_SOAK_PATIENCE=10m CARILLON_SOAK_REPORT=$(CURDIR)/bin/soak.md \
		$(GO) test -tags $(TAGS) -count=1 -v -timeout 90m -run '^TestSoak$$' ./test/soak

race: ## the whole suite with the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -tags $(TAGS) -timeout 30m ./...

check: ## format, vet, staticcheck, import floors
	@out=$$($(GO) run $(GOFUMPT) -l .); if [ -n "$$out" ]; then echo "not formatted (make fmt):"; echo "$$out"; exit 1; fi
	$(GO) vet -tags $(TAGS) ./...
	$(GO) run $(STATICCHECK) -tags $(TAGS) ./...
	$(GO) test -tags $(TAGS) -run 'TestFloors' ./homeserver

fmt: ## format the sources
	$(GO) run $(GOFUMPT) -w .

generate: ## example configuration and generated pages
	$(GO) generate ./config

fuzz: ## every fuzz target for FUZZTIME (30s) each
	@grep -rhoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' -H . | sed 's,func ,,' | while IFS=: read -r file name; do \
		echo "$$name in $$(dirname $$file)"; \
		$(GO) test -tags $(TAGS) -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) "./$$(dirname $$file)" || exit 1; \
	done

bench: ## the benchmarks of the hot pieces; BENCH=pattern chooses
	$(GO) test -tags $(TAGS) -run '^$$' -bench '$(BENCH)' -benchmem ./...

interop: ## federation with Dendrite, which is built first if it is not there (some minutes)
	CARILLON_INTEROP=on $(GO) test -tags $(TAGS) -timeout 30m -count=1 -v ./test/interop

complement: build ## how to run the public Complement suite
	@echo "docs/conformance.md says how, and what comes out. Without Docker, any runner that starts"
	@echo "  CARILLON_BIN=$(CURDIR)/bin/carillon test/complement/launch"
	@echo "once per homeserver of a test can drive the suite (see its head)."

clean: ## remove what make built; the data stays
	rm -rf bin
