#!/usr/bin/env bash
# Everything that can be said about the source without running it.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

step() { printf '\n== %s\n' "$*"; }

step "format"
cargo fmt --check
step "clippy"
cargo clippy --locked --all-targets -- -D warnings
step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
step "shell scripts"
if command -v shellcheck >/dev/null 2>&1; then
    shellcheck .ci/run scripts/*.sh
else
    echo "shellcheck is not installed; only the syntax is checked"
    for script in .ci/run scripts/*.sh; do bash -n "$script"; done
fi
step "dependencies"
if command -v cargo-deny >/dev/null 2>&1; then
    # Advisories need the network's advisory database; the rest of deny.toml does not.
    cargo deny --locked check bans licenses sources
else
    echo "cargo-deny is not installed; deny.toml was not held against Cargo.lock"
fi
