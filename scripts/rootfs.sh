#!/usr/bin/env bash
# Puts the container's file system together: the program, the iptables and ipset programs that it starts, the
# libraries these need, and nothing else: no shell, no package manager, no language runtime.
#
#   scripts/rootfs.sh PROGRAM FOLDER
#
# The programs are this machine's (Debian's iptables and ipset packages). The image is built with it inside of a
# Debian container, and the tests run the agent in what it puts together here.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

if [ $# -ne 2 ]; then
    echo "usage: $0 PROGRAM FOLDER" >&2
    exit 64
fi
program=$1
root=$2
if [ -e "$root" ] && [ -n "$(ls -A "$root")" ]; then
    echo "$0: $root is not empty: name a folder that is" >&2
    exit 64
fi

# Debian's packages whose files are taken, for the list that vulnerability scanners read.
declare -A packages=()

# take FILE: the file with all its links on the way, and its package's name.
take() {
    local file=$1 target
    while [ -L "$file" ]; do
        target=$(readlink "$file")
        [ "${target#/}" != "$target" ] || target=$(dirname "$file")/$target
        file=$(realpath -s "$target")
    done
    file=$(realpath "$file")
    install -D -m "$(stat -c %a "$file")" "$file" "$root$2"
    local owner
    owner=$(dpkg-query -S "$file" 2>/dev/null || dpkg-query -S "${file#/usr}" 2>/dev/null || true)
    [ -z "$owner" ] || packages[${owner%%:*}]=1
}

# with_libraries FILE…: the shared libraries that these need, where the loader looks for them.
with_libraries() {
    # A static program has none, and ldd then fails.
    { ldd "$@" 2>/dev/null || true; } | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && $1 !~ /:$/ { print $1 }' |
        sort -u | while read -r library; do printf '%s\n' "$library"; done
}

install -D -m 0755 "$program" "$root/usr/bin/edgesplice"

# What iptables is under all of its names.
for kind in nft legacy; do
    multi=$(realpath "$(command -v "iptables-$kind")")
    take "$multi" "/usr/sbin/$(basename "$multi")"
    for family in iptables ip6tables; do
        for what in "" -save -restore; do
            ln -s "$(basename "$multi")" "$root/usr/sbin/$family-$kind$what"
        done
    done
done
take "$(command -v ipset)" /usr/sbin/ipset

# The matches and targets that iptables loads when a rule names them: those of the rules that the agent writes, probes
# or removes.
libraries=$(dirname "$(realpath "$(command -v iptables-nft)")")
libraries=$(iptables_dir=""; for dir in /usr/lib/*/xtables /usr/lib/xtables /usr/libexec/xtables; do
    [ -d "$dir" ] && iptables_dir=$dir && break
done; printf '%s' "$iptables_dir")
if [ -z "$libraries" ]; then
    echo "$0: the folder of iptables' extensions was not found" >&2
    exit 1
fi
extensions=()
for extension in "$libraries"/*.so; do
    take "$extension" "$extension"
    extensions+=("$extension")
done

# The loader looks in the folders of the machine that the programs come from.
while read -r library; do
    take "$library" "$library"
done < <(with_libraries "$program" "$(realpath "$(command -v iptables-nft)")" \
    "$(realpath "$(command -v iptables-legacy)")" "$(realpath "$(command -v ipset)")" "${extensions[@]}")

# Names for the numbers that appear in rules and logs, and who root is.
install -d -m 0755 "$root/etc" "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/var/lib/edgesplice" \
    "$root/var/lib/dpkg/status.d"
install -d -m 1777 "$root/tmp"
printf 'root:x:0:0:root:/root:/usr/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
[ ! -e /etc/protocols ] || take /etc/protocols /etc/protocols
ln -s /run "$root/var/run"
for package in "${!packages[@]}"; do
    dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/$package"
done
