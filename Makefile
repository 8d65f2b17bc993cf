# One task runner for people and machines; the scripts do the work. Contract: `make help`.
PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help build test fuzz lint demo bench soak dist install screenshots

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the program, optimised: target/release/edgesplice
	@scripts/setup.sh build
	$(CARGO) build --locked --release

test: ## set up what is missing and run every test, the network ones too (root or sudo)
	@scripts/test.sh

fuzz: ## every fuzz target for FUZZ_SECONDS (60) each
	@scripts/setup.sh fuzz
	@scripts/fuzz.sh

lint: ## format, clippy, documentation, scripts, dependencies
	@scripts/setup.sh lint
	@scripts/lint.sh

demo: ## the main job in network namespaces, each request and its answer printed (root or sudo)
	@scripts/demo.sh

bench: ## the side-by-side table; QUICK=1 for a short run (root or sudo)
	@scripts/bench.sh

soak: ## every fault at once, with a report; SOAK_SECONDS=60 for a short run (root or sudo)
	@scripts/soak.sh

screenshots: ## the agent's page in headless Chromium: checked, and pictured in docs/screenshots (root)
	@scripts/setup.sh screenshots
	$(CARGO) build --locked
	@scripts/screenshots.py target/debug/edgesplice

dist: ## static programs for amd64, arm64 and arm in dist/; DIST_ARCH=amd64 for one of them
	@scripts/dist.sh

install: build ## program, manual, completions and systemd unit into $(DESTDIR)$(PREFIX)
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" scripts/install.sh target/release/edgesplice
