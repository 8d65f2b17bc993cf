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
shellcheck .ci/run scripts/*.sh
step "dependencies"
deny=0.20.2
if [ "$(target/tools/bin/cargo-deny --version 2>/dev/null)" != "cargo-deny $deny" ]; then
    echo "building cargo-deny $deny"
    # Not optimised: it runs for two seconds. Beside what may be set for the program's own build.
    CARGO_TARGET_DIR=target/tools/build \
        cargo install --quiet --debug --locked --root target/tools --force "cargo-deny@$deny"
    rm -rf target/tools/build
fi
# Advisories need the network's advisory database; the rest of deny.toml does not.
target/tools/bin/cargo-deny --locked check bans licenses sources
