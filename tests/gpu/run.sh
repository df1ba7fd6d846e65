#!/usr/bin/env bash
# The whole check of one GPU, at most ten minutes: bash tests/gpu/run.sh OUT [options of tests.gpu.check]
# Where scipy or xxhash are missing and there is no network: WHEELS=folder-of-wheels bash tests/gpu/run.sh OUT
set -euo pipefail
out=${1:?bash tests/gpu/run.sh OUT}
python=${PYTHON:-$(command -v python || command -v python3)}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --target "$out/packages" "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$out/packages"
fi
exec "$python" -m tests.gpu.check --out "$out" "$@"
