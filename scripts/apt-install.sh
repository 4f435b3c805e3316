#!/bin/sh
# apt-install.sh [PACKAGE...]: installs Debian packages if that needs no password, else says what to install and fails.
# Without a package it only updates the lists.
set -eu

become_root=""
if [ "$(id -u)" -ne 0 ]; then
    become_root="sudo -n"
fi
if ! command -v apt-get >/dev/null || ! $become_root true 2>/dev/null; then
    {
        echo "missing: ${*:-the lists of packages}"
        echo "They can't be installed from here (this needs apt-get, and root or sudo without a password). As root:"
        echo "    apt-get update && apt-get install -y --no-install-recommends $*"
        echo "Other systems: install the same programs by their own means, for example with brew."
    } >&2
    exit 1
fi
echo "installing with apt: $*"
$become_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
[ $# -eq 0 ] || $become_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
