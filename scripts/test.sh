#!/usr/bin/env bash
# Runs every test, the ones in network namespaces too. These need root: as another user, cargo builds as that user
# and the test programs run through sudo. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
scripts/setup.sh test
scripts/tools.sh
# shellcheck source=scripts/runner.sh
. scripts/runner.sh
cargo test --locked --no-fail-fast "$@"
