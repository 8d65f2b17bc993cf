# Sourced by test.sh and bench.sh: has cargo run the programs it builds through sudo, where the user is not root.
# shellcheck shell=bash
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "Network namespaces need root, and there is no sudo: run this as root." >&2
        exit 1
    fi
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${host}_RUNNER=sudo -E env PATH=$PATH"
fi
