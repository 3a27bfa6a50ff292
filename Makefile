# make demo   shows what loader_history does, on a throwaway cluster (and so does make alone)
# make test   runs everything that must pass, on one PostgreSQL
# make test-all   runs it on every supported major: 15, 16, 17 and 18
# make setup   installs and downloads what the other targets need; they run it themselves, but for all and install
# make all   builds a release, and only that: it installs and downloads nothing
# make install   installs it into the PostgreSQL of PG_CONFIG
# make deb   builds a Debian package
# make console   builds the web console: target/release/loader-history-console
#
# PG picks the major version of PostgreSQL (15), as in make test PG=18: Debian's or, where that is not
# installed, one that scripts/postgresql brings into target. PG_CONFIG is the pg_config of another.

PG ?= 15
export PG
ifdef PG_CONFIG
export PG_CONFIG
endif

.PHONY: all demo console console-load test test-all lint audit install deb dist setup setup-deb schema seal clean chaos failover soak latency baseline bench screenshots

.DEFAULT_GOAL := demo

# What PGXN's client and packagers run before make install. Both only build and install. If something is
# missing, they name the command that provides it.
all:
	@scripts/build >/dev/null

setup:
	@scripts/setup

setup-deb:
	@scripts/setup deb

demo: setup
	@scripts/demo

test: setup-deb
	@scripts/test

test-all:
	@scripts/test-all

# Tests that make test runs in a small size, and what an autonomous start costs. pg_test/FIGURES.md has the
# results.
chaos: setup
	@CHAOS_ROUNDS=$${CHAOS_ROUNDS:-20} scripts/test --test chaos -- --nocapture

failover: setup
	@FAILOVER_ROUNDS=$${FAILOVER_ROUNDS:-60} scripts/test --test failover -- --nocapture

soak: setup
	@SOAK_ROUNDS=$${SOAK_ROUNDS:-1000000} SOAK_SESSIONS=$${SOAK_SESSIONS:-10000} scripts/measure soak

console-load: setup
	@CONSOLE_LOAD_SECONDS=$${CONSOLE_LOAD_SECONDS:-60} CONSOLE_LOAD_STREAMS=$${CONSOLE_LOAD_STREAMS:-200} \
		CONSOLE_LOAD_PAGES=$${CONSOLE_LOAD_PAGES:-50} \
		scripts/test-console --test load -- --nocapture --test-threads 1

# On a disk, since it is the disk that a start waits for.
latency: setup
	@TMPDIR=$${TMPDIR:-/var/tmp} scripts/measure latency

# What this version costs beside release 1.5.0 and beside hand-written PL/pgSQL with pg_notify, taking turns in
# the same run: 15 minutes and 4 GB of disk in TMPDIR. Prints the ratios.
baseline: setup
	@BENCH_SIZE=$${BENCH_SIZE:-full} BENCH_ONLY=baseline TMPDIR=$${TMPDIR:-/var/tmp} scripts/measure bench

# What everything costs beside what people write today: 50 minutes and 25 GB of disk in TMPDIR; writes
# docs/bench.md and its charts. BENCH_ROWS=100000000 adds a history of a hundred million executions.
bench: setup
	@BENCH_SIZE=full TMPDIR=$${TMPDIR:-/var/tmp} scripts/measure bench

# The pictures of the console in docs/console.md.
screenshots: setup
	@scripts/screenshots

# Versions that agree, dependencies, unsafe blocks, formatting and clippy, part of make test.
lint: setup
	@scripts/lint

# Known defects of the dependencies. Not part of make test: it needs the network to the RustSec database.
audit: setup
	@scripts/deny advisories

install:
	@scripts/install

console: setup
	@scripts/console

# A Debian package of the major version PG, in target/deb.
deb: setup-deb
	@scripts/deb

# The committed sources, packed for PGXN.
dist:
	@scripts/dist

# Writes the install script that a released version is frozen with, which make seal then guards.
schema: setup
	@scripts/schema

# On the day of a release, when CHANGELOG.md has its date.
seal:
	@scripts/release-check --seal

clean:
	@scripts/clean
