#!/usr/bin/env bash
# Static programs for nodes of several kinds, in dist/. DIST_ARCH names one kind (amd64, arm64, arm); all otherwise.
# DIST_PROFILE=release builds faster, and makes a program that is a tenth larger.
#
# Rust's musl targets are taken, with Debian's cross compilers for the little C and assembler in the tree (ring). Where
# the standard library for one cannot be had, glibc is linked in statically instead, if the table names such a target.
# docs/building.md says what was tried.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# kind of node, Rust's target, the target in its place or -, C compiler, linker, packages of both
kinds=(
    # musl-gcc would link against its own musl, and not as Rust's target wants it.
    "amd64 x86_64-unknown-linux-musl - musl-gcc cc musl-tools,gcc"
    "arm64 aarch64-unknown-linux-musl - aarch64-linux-gnu-gcc aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu,libc6-dev-arm64-cross"
    "arm armv7-unknown-linux-musleabihf armv7-unknown-linux-gnueabihf arm-linux-gnueabihf-gcc arm-linux-gnueabihf-gcc gcc-arm-linux-gnueabihf,libc6-dev-armhf-cross"
)

# has TARGET: whether its standard library is there, or can be fetched.
has() {
    [ -d "$(rustc --print sysroot)/lib/rustlib/$1/lib" ] || rustup target add "$1"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

failed=0
profile=${DIST_PROFILE:-dist}
mkdir -p dist
for kind in "${kinds[@]}"; do
    read -r arch target instead compiler linker packages <<<"$kind"
    [ -z "${DIST_ARCH:-}" ] || [ "$DIST_ARCH" = "$arch" ] || continue
    echo "== $arch: $target"
    if ! has "$target"; then
        if [ "$instead" = - ] || ! has "$instead"; then
            echo "dist: Rust's standard library for $target cannot be had here; $arch is left out" >&2
            failed=1
            continue
        fi
        echo "dist: no standard library for $target here: $instead with glibc linked in is taken instead" >&2
        target=$instead
    fi
    if ! command -v "$compiler" >/dev/null 2>&1 || ! command -v "$linker" >/dev/null 2>&1; then
        if command -v apt-get >/dev/null 2>&1; then
            IFS=, read -ra wanted <<<"$packages"
            as_root apt-get -q update
            as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends install "${wanted[@]}"
        else
            echo "dist: $compiler is not installed; $arch is left out" >&2
            failed=1
            continue
        fi
    fi
    name=${target//-/_}
    # The musl targets bring their C library along; the compiler is for ring, the linker only puts things together.
    settings=("CC_$name=$compiler" "CARGO_TARGET_${name^^}_LINKER=$linker")
    if [ "$target" = "$instead" ]; then
        settings+=("CARGO_TARGET_${name^^}_RUSTFLAGS=-C target-feature=+crt-static")
    fi
    env "${settings[@]}" cargo build --locked --profile "$profile" --target "$target"
    program=target/$target/${profile/#dev/debug}/edgesplice
    if readelf -lW "$program" | grep -q INTERP; then
        echo "dist: $program is not static: it asks for a loader" >&2
        exit 1
    fi
    install -m 0755 "$program" "dist/edgesplice-linux-$arch"
done
(cd dist && for file in edgesplice-linux-*; do
    [ ! -e "$file" ] || sha256sum "$file"
done >SHA256SUMS)
ls -l dist
exit "$failed"
