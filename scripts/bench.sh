#!/usr/bin/env bash
# The side-by-side table. QUICK=1: under three minutes; ROWS=dnat,haproxy,…: only these.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
scripts/setup.sh bench
# shellcheck source=scripts/runner.sh
. scripts/runner.sh
cargo bench --locked --bench compare
cargo bench --locked --bench datagrams
cargo bench --locked --bench http
