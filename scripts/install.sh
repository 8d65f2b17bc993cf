#!/usr/bin/env bash
# Puts the program, its manual pages, completions and systemd unit in place. `make install` calls it.
#
#   scripts/install.sh PROGRAM          PREFIX (/usr/local) and DESTDIR are taken from the environment
#
# A configuration that is there already is left as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$1
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}
share=$root$prefix/share

install -D -m 0755 "$program" "$root$prefix/bin/edgesplice"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$program" man "$work/man"
install -d "$share/man/man1"
install -m 0644 "$work"/man/*.1 "$share/man/man1/"
for shell in bash zsh fish; do
    "$program" completions "$shell" >"$work/$shell"
done
install -D -m 0644 "$work/bash" "$share/bash-completion/completions/edgesplice"
install -D -m 0644 "$work/zsh" "$share/zsh/site-functions/_edgesplice"
install -D -m 0644 "$work/fish" "$share/fish/vendor_completions.d/edgesplice.fish"

sed "s|@BINDIR@|$prefix/bin|" deploy/systemd/edgesplice.service >"$work/unit"
install -D -m 0644 "$work/unit" "$root$prefix/lib/systemd/system/edgesplice.service"
config=$root/etc/edgesplice/config.yaml
[ -e "$config" ] || install -D -m 0644 deploy/systemd/config.yaml "$config"

if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    echo "Edit /etc/edgesplice/config.yaml, then: systemctl enable --now edgesplice"
fi
