#!/usr/bin/env bash
# Runs each fuzz target for FUZZ_SECONDS (60): arguments name targets, none means all. Sets up cargo-fuzz in
# target/tools; the toolchain is the one that builds the program. What a target finds ends the run, and stands in
# fuzz/artifacts: mend the fault, and keep the file in tests/fixtures/fuzz/TARGET, which `cargo test` goes through.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
version=0.13.2
tools=$PWD/target/tools
seconds=${FUZZ_SECONDS:-60}

if [ "$("$tools/bin/cargo-fuzz" --version 2>/dev/null)" != "cargo-fuzz $version" ]; then
    echo "fuzz: building cargo-fuzz $version"
    # Beside what may be set for the program's own build.
    CARGO_TARGET_DIR=target/tools/build cargo install --quiet --locked --root "$tools" --force cargo-fuzz@"$version"
    rm -rf target/tools/build
fi
# libFuzzer is C++.
command -v c++ >/dev/null 2>&1 || { echo "fuzz: a C++ compiler is missing: apt-get install g++" >&2; exit 1; }

# No sanitizer: they need a nightly compiler, and there is no unsafe code for them to watch over. Faults show as panics,
# with overflow checks and debug assertions on.
fuzz() { "$tools/bin/cargo-fuzz" "$1" --dev --sanitizer none "${@:2}"; }

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <("$tools/bin/cargo-fuzz" list)
fuzz build
for target in "${targets[@]}"; do
    printf '\n== %s, %s s\n' "$target" "$seconds"
    mkdir -p "fuzz/corpus/$target" "fuzz/seeds/$target"
    fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=16384 -print_final_stats=1 -verbosity=0
done
echo
echo "fuzz: ${#targets[@]} targets, $seconds s each: nothing found"
