#!/bin/sh
# Prints the path of a uv; installs one into .cache/uv-venv if there is none on PATH. All talk goes to stderr.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"

if command -v uv; then
    exit 0
fi
own="$PWD/.cache/uv-venv"
if [ ! -x "$own/bin/uv" ]; then
    if ! command -v "$python" >/dev/null; then
        echo "setup: $python is not installed; Python 3.11 or newer is needed (or uv on PATH)" >&2
        exit 1
    fi
    if ! "$python" -c "import ensurepip, venv" 2>/dev/null; then
        # Debian ships Python without ensurepip.
        echo "setup: $python has no venv module, installing python3-venv" >&2
        sh scripts/apt-install.sh python3-venv >&2
    fi
    rm -rf "$own"
    "$python" -m venv "$own" >&2
    "$own/bin/python" -m pip install --quiet "uv>=0.5" >&2
fi
echo "$own/bin/uv"
