#!/usr/bin/env bash
# Puts the container's file system together: the program, the iptables and ipset programs that it starts, the libraries
# these need, and nothing else: no shell, no package manager, no language runtime.
#
#   scripts/rootfs.sh PROGRAM FOLDER
#
# The programs are this machine's: Debian's packages iptables, ipset and netbase. The image is made with it inside of a
# Debian container, and the tests run the agent in what it puts together on the machine that they run on.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

if [ $# -ne 2 ]; then
    echo "usage: $0 PROGRAM FOLDER" >&2
    exit 64
fi
program=$1
root=$2
if [ -e "$root" ] && [ -n "$(ls -A "$root")" ]; then
    echo "$0: $root is not empty: name a folder that is, or that is not there yet" >&2
    exit 64
fi

# What was taken of the machine.
files=()

# take FILE PLACE: puts the file that FILE leads to at PLACE.
take() {
    local file
    file=$(realpath "$1")
    mkdir -p "$(dirname "$root$2")"
    cp -L --preserve=mode "$file" "$root$2"
    files+=("$file")
}

# libraries FILE…: the shared libraries that these need, and the loader.
libraries() {
    # A static program has none, and ldd says so with a failure.
    { ldd "$@" 2>/dev/null || true; } |
        awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && $1 !~ /:$/ { print $1 }' | sort -u
}

install -D -m 0755 "$program" "$root/usr/bin/edgesplice"
install -d -m 0755 "$root/usr/sbin"
taken=("$program")

# The two programs that are iptables under all of its names.
for kind in nft legacy; do
    multi=$(realpath "$(command -v "iptables-$kind")")
    take "$multi" "/usr/sbin/$(basename "$multi")"
    taken+=("$multi")
    for family in iptables ip6tables; do
        for what in "" -save -restore; do
            ln -s "$(basename "$multi")" "$root/usr/sbin/$family-$kind$what"
        done
    done
done
ipset=$(realpath "$(command -v ipset)")
take "$ipset" /usr/sbin/ipset
taken+=("$ipset")

# Matches and targets, which iptables loads when a rule names them. Rules of others may name any.
extensions=(/usr/lib/*/xtables/*.so)
if [ ! -e "${extensions[0]}" ]; then
    echo "$0: iptables' extensions are not in /usr/lib/*/xtables: is this Debian, with the package iptables?" >&2
    exit 1
fi
folder=$(dirname "${extensions[0]}")
mkdir -p "$root$folder"
cp -L --preserve=mode "${extensions[@]}" "$root$folder/"
files+=("${extensions[@]}")
taken+=("${extensions[@]}")

while read -r library; do
    take "$library" "$library"
done < <(libraries "${taken[@]}")

# Where the runtime mounts things, names for numbers, and who root is.
install -d -m 0755 "$root"/{etc,dev,proc,sys,run,var/lib/edgesplice,var/lib/dpkg/status.d}
install -d -m 1777 "$root/tmp"
ln -s /run "$root/var/run"
take /etc/protocols /etc/protocols
printf 'root:x:0:0:root:/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"

# Debian's packages that the files are from, for vulnerability scanners. A library may be known by its place from before
# /lib became a link, so both are asked for.
{ dpkg-query -S "${files[@]}" "${files[@]#/usr}" 2>/dev/null || true; } | cut -d: -f1 | sort -u |
    while read -r package; do
        dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/$package"
    done
