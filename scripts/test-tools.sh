#!/bin/sh
# Makes sure of what the integration tests need beside Python: Mosquitto, Java 17 or newer, Maven, Postgres.
set -eu
cd "$(dirname "$0")/.."
# Debian's mosquitto is in /usr/sbin, which is not on every user's PATH.
PATH="$PATH:/usr/sbin:/usr/local/sbin"

java_is_new_enough() {
    version="$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')"
    [ -n "$version" ] && [ "$version" -ge 17 ]
}

missing=""
command -v mosquitto >/dev/null || missing="$missing mosquitto"
java_is_new_enough || missing="$missing java"
command -v mvn >/dev/null || missing="$missing maven"
# Debian keeps the server of Postgres off the PATH.
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$missing postgresql"
[ -z "$missing" ] && exit 0

packages=""
for tool in $missing; do
    case "$tool" in
        # Debian 12 has 17; later releases have only newer ones.
        java) if grep -qs '^12' /etc/debian_version; then tool=openjdk-17-jre-headless; else tool=default-jre-headless; fi ;;
    esac
    packages="$packages $tool"
done
# shellcheck disable=SC2086 # a list of names
sh scripts/apt-install.sh $packages
java_is_new_enough || { echo "java on PATH is older than 17 (or can't be read): $(command -v java)" >&2; exit 1; }
