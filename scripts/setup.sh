#!/usr/bin/env bash
# Installs what is missing from Debian's packages, and checks that the Rust toolchain is there.
#
#   scripts/setup.sh build|lint|demo|test|fuzz|bench|soak|screenshots
#
# Only missing programs are installed. Packages that would start a daemon are kept from it: nginx and HAProxy are
# wanted as programs, not as services of this machine.
set -euo pipefail
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"

what=${1:-build}
packages=()

# need PROGRAM PACKAGE
need() {
    command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        echo "setup: this needs root and there is no sudo: $*" >&2
        return 1
    fi
}

need cc gcc
case $what in
build) ;;
lint) need shellcheck shellcheck ;;
fuzz) need c++ g++ ;;
demo | test | bench | soak)
    need ip iproute2
    need ss iproute2
    need iptables-nft-save iptables
    need ipset ipset
    need curl curl
    need nginx nginx
    need perl perl-base
    need dig bind9-dnsutils
    need conntrack conntrack
    need setpriv util-linux
    need timeout coreutils
    need sysctl procps
    need socat socat
    need nft nftables
    if [ "$what" = test ]; then
        # What holds deploy/ to the rules: a container runtime, systemd's own checker, and clients of the registries
        # from which scripts/tools.sh gets the rest.
        need crun crun
        need systemd-analyze systemd
        need npm npm
        need python3 python3
        python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    fi
    if [ "$what" = test ] || [ "$what" = soak ]; then
        # Gives a process another clock.
        compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || packages+=(libfaketime)
    fi
    if [ "$what" = bench ]; then
        need haproxy haproxy
        need dnsmasq dnsmasq-base
        need unbound unbound
        [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || packages+=(libnginx-mod-stream)
    fi
    ;;
screenshots)
    need ip iproute2
    need iptables-nft-save iptables
    need ipset ipset
    need python3 python3-minimal
    need chromium chromium
    need fc-match fontconfig
    [ -e /usr/share/fonts/truetype/dejavu ] || packages+=(fonts-dejavu-core)
    ;;
*)
    echo "setup: unknown set '$what'; one of build, lint, demo, test, fuzz, bench, soak, screenshots" >&2
    exit 64
    ;;
esac

# promtool alone, out of Debian's package: the rest of it is a server with 90 MB that nobody here wants.
tools=$(cd "$(dirname "$0")/.." && pwd)/target/tools
fetch_promtool() {
    command -v promtool >/dev/null 2>&1 || [ -x "$tools/promtool" ] && return
    echo "setup: fetching promtool"
    local folder
    folder=$(mktemp -d)
    # A fresh machine has no lists yet.
    (cd "$folder" && apt-get -q download prometheus >/dev/null 2>&1) ||
        (as_root apt-get -q update && cd "$folder" && apt-get -q download prometheus)
    mkdir -p "$tools"
    dpkg-deb --fsys-tarfile "$folder"/prometheus_*.deb | tar -xO ./usr/bin/promtool >"$tools/promtool.new"
    chmod 755 "$tools/promtool.new"
    mv "$tools/promtool.new" "$tools/promtool"
    rm -r "$folder"
}

# The answer 101 of this file tells Debian's packages not to start what they install.
policy=/usr/sbin/policy-rc.d
kept=$policy.before-edgesplice
restore_policy() {
    as_root rm -f "$policy"
    if [ -e "$kept" ]; then as_root mv "$kept" "$policy"; fi
}

if [ ${#packages[@]} -gt 0 ]; then
    mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
    echo "setup: installing ${packages[*]}"
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: no apt-get here; install these by other means: ${packages[*]}" >&2
        exit 1
    fi
    trap restore_policy EXIT
    if [ -e "$policy" ]; then as_root mv "$policy" "$kept"; fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    install=(env DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends install "${packages[@]}")
    # The lists of a fresh machine are empty or old: fetch them first.
    as_root apt-get -q update
    as_root "${install[@]}"
    trap - EXIT
    restore_policy
fi

if [ "$what" = test ]; then fetch_promtool; fi

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: cargo is not installed. Get Rust from https://rustup.rs (the version stands in Cargo.toml)." >&2
    exit 1
fi
