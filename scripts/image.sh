#!/bin/sh
# image.sh TAG: builds the image TAG from the Dockerfile, and puts into .cache/image what tests/integration/test_image.py
# looks at: root/ (its file system), config.json, and compressed-bytes (its size).
# With Docker, if its engine answers. Else with buildah, which needs none, on a base made of Debian's packages by
# mmdebstrap, which is what debian:bookworm-slim is made of too. The second way wants root (chroot isolation).
set -eu
cd "$(dirname "$0")/.."
tag="$1"
out=.cache/image
revision="$(git rev-parse HEAD 2>/dev/null || echo unknown)"
version="$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)"
mkdir -p "$out"
rm -rf "$out/root" "$out/image.tar"

if docker info >/dev/null 2>&1; then
    docker build --tag "$tag" --build-arg VERSION="$version" --build-arg REVISION="$revision" .
    docker save --output "$out/image.tar" "$tag"
    docker image inspect --format '{{json .Config}}' "$tag" > "$out/config.json"
    container="$(docker create "$tag")"
    mkdir "$out/root"
    docker export "$container" | tar -x -C "$out/root"
    docker rm "$container" >/dev/null
else
    missing=""
    for tool in buildah mmdebstrap; do
        command -v "$tool" >/dev/null || missing="$missing $tool"
    done
    # shellcheck disable=SC2086 # a list of names
    [ -z "$missing" ] || sh scripts/apt-install.sh $missing
    base=localhost/mkf-base:bookworm
    if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
        # From where this machine gets its own packages.
        sources=/etc/apt/sources.list.d/debian.sources
        [ -f "$sources" ] || sources=/etc/apt/sources.list
        mmdebstrap --variant=minbase --dpkgopt='path-exclude=/usr/share/man/*' \
            --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
            --dpkgopt='path-include=/usr/share/doc/*/copyright' bookworm "$out/base.tar" "$sources"
        container="$(buildah from scratch)"
        buildah add --quiet "$container" "$out/base.tar" /
        buildah commit --quiet --rm "$container" "$base"
        rm "$out/base.tar"
    fi
    # --format docker: the OCI format has no HEALTHCHECK.
    buildah build --isolation chroot --format docker --layers --tag "$tag" \
        --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt \
        --build-arg BASE="$base" --build-arg VERSION="$version" --build-arg REVISION="$revision" .
    buildah push --quiet --format v2s2 "$tag" "docker-archive:$out/image.tar:$tag"
    buildah inspect --type image "$tag" |
        python3 -c 'import json, sys; json.dump(json.load(sys.stdin)["Docker"]["config"], sys.stdout)' > "$out/config.json"
    container="$(buildah from --pull-never "$tag")"
    mkdir "$out/root"
    cp -a "$(buildah mount "$container")/." "$out/root"
    buildah rm "$container" >/dev/null
fi
gzip --stdout --fast "$out/image.tar" | wc -c > "$out/compressed-bytes"
