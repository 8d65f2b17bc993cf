#!/usr/bin/env bash
# Flame graphs of the data threads under a load of the comparison, in docs/bench/flame-MEASURE.svg.
#
#   scripts/flames.sh bulk1 keepAlive newConnections
#
# Needs root, perf, and inferno's programs (`cargo install inferno`). User frames are whole with
# RUSTFLAGS=-Cforce-frame-pointers=yes; PROGRAM names such a build, else the bench builds its own.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
scripts/setup.sh bench
row=edgesplice
if [ -n "${PROGRAM:-}" ]; then
    row=other
    export OTHER=$PROGRAM
fi
cargo bench --locked --bench compare --no-run
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for measure in "${@:-newConnections}"; do
    perf record -q -a -F 999 -g -o "$work/perf.data" -- \
        env QUICK=1 ROWS=$row MEASURES="$measure" cargo bench --locked --bench compare >&2
    # Only the threads that carry connections; their names are the first frame.
    perf script -i "$work/perf.data" --comm data-0,data-1 2>/dev/null |
        inferno-collapse-perf | sed 's/^data-[01];/data threads;/' >"$work/folded"
    inferno-flamegraph --title "$measure: data threads" --subtitle "perf record -F 999 -g, QUICK=1 make bench" \
        --minwidth 0.2 --hash <"$work/folded" >"docs/bench/flame-$measure.svg"
    ls -l "docs/bench/flame-$measure.svg" >&2
done
