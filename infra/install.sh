#!/bin/sh
# Set up what `make demo` and `make test` need. Each step is skipped when its inputs have not changed.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"

need() { # need COMMAND REMEDY
  command -v "$1" >/dev/null 2>&1 || { echo "crossmargin: '$1' is missing. $2" >&2; exit 1; }
}
need "$PYTHON" "Install Python 3.11, 3.12 or 3.13, or name it: make PYTHON=/path/to/python3.11 install"
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || {
  echo "crossmargin: $("$PYTHON" --version) does not fit (need >= 3.11, < 3.14). Name another: make PYTHON=python3.11 install" >&2; exit 1; }
need node "Install Node.js 20 or newer: it brings the local EVM chains."
need npm "Install npm: it comes with Node.js 20 or newer."
[ "$(node -p 'Number(process.versions.node.split(".")[0])')" -ge 20 ] || {
  echo "crossmargin: Node.js $(node --version) is too old; install 20 or newer." >&2; exit 1; }

fingerprint() { "$PYTHON" -c 'import hashlib,sys; print(hashlib.sha256(b"".join(open(f,"rb").read() for f in sys.argv[1:])).hexdigest())' "$@"; }

want=$(fingerprint requirements.lock pyproject.toml)
if [ "$(cat .venv/.installed 2>/dev/null || true)" != "$want" ]; then
  echo "[1/2] Python packages into .venv ..."
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv || {
    echo "crossmargin: could not make .venv; on Debian and Ubuntu install python3-venv." >&2; exit 1; }
  if .venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9' 2>/dev/null; then
    .venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python requirements.lock
    .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
  else
    echo "      uv is not to be had here; pip does it, more slowly."
    .venv/bin/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
    .venv/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
  fi
  echo "$want" > .venv/.installed
fi

want=$(fingerprint infra/devnet/package-lock.json)
if [ "$(cat infra/devnet/node_modules/.installed 2>/dev/null || true)" != "$want" ]; then
  echo "[2/2] Local EVM chain and protocol artifacts into infra/devnet/node_modules ..."
  (cd infra/devnet && npm ci --no-audit --no-fund --loglevel=error)
  echo "$want" > infra/devnet/node_modules/.installed
fi
