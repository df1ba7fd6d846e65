#!/bin/sh
# Exports a buffer and trains d3rlpy and a plain TD3+BC on it, in an environment of their own:
#
#     docs/interop/run.sh BUFFER OUT [options of train_elsewhere.py]
#
# RAYSTITCH: the Python that has raystitch (default: .venv/bin/python). PIP_CONSTRAINT is pip's own.
set -eu
buffer=$1 out=$2
shift 2
here=$(dirname "$0")
python=${RAYSTITCH:-.venv/bin/python}
minari_id=interop/$(basename "$out")-v0
mkdir -p "$out"

if [ ! -e "$out/expected.npz" ]; then
    "$python" -m raystitch.cli export "$buffer" --format d4rl --what episodes --out "$out/stitched.hdf5"
    "$python" -m raystitch.cli export "$buffer" --format minari --what episodes --out "$minari_id"
    "$python" "$here/describe.py" "$buffer" "$out/expected.npz"
fi
if [ ! -e "$out/venv/.installed" ]; then
    "$python" -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet -r "$here/requirements.txt"
    touch "$out/venv/.installed"
fi
exec "$out/venv/bin/python" "$here/train_elsewhere.py" "$out" "$minari_id" "$@"
