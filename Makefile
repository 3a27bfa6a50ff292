# make demo   shows what loader_history does, on a throwaway cluster
# make test   runs everything that must pass
# make install   installs into the PostgreSQL of PG_CONFIG
#
# PG picks the major version of PostgreSQL (15), PG_CONFIG its pg_config.

PG ?= 15
export PG
ifdef PG_CONFIG
export PG_CONFIG
endif

.PHONY: all demo test lint install setup schema clean

all: demo

setup:
	@scripts/setup

demo: setup
	@scripts/demo

test: setup
	@scripts/test

# Formatting and clippy, part of make test.
lint: setup
	@scripts/lint

install: setup
	@scripts/install

# Writes the install script that a released version is frozen with.
schema: setup
	@scripts/schema

clean:
	@scripts/clean
