#!/usr/bin/env bash
# Every fault at once, for ten minutes. SOAK_SECONDS=60: shorter; SOAK_SEED=2: another order. Writes docs/bench/soak.*
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
scripts/setup.sh soak
# shellcheck source=scripts/runner.sh
. scripts/runner.sh
# The agent as it is shipped; the clients need no optimisation.
cargo build --locked --release
PROGRAM=$PWD/target/release/edgesplice cargo test --locked --bench faults -- soak
