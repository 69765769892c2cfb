#!/usr/bin/env bash
# What one GPU does with chatpipe, in one call: the machine, decoding, ppo against trl, and pretraining's MFU.
#
#     benchmarks/gpu.sh [FOLDER]        # default: build/gpu
#
# Each part prints its own table or JSON, also into FOLDER. Needs a checkout with chatpipe installed (.venv or $PYTHON).
# The last two parts need the network or a filled cache: for trl 1.12, and for FineWeb-Edu with GPT-2's tokenizer.
# A part that fails is named at the end, and the others run all the same. Not run on a GPU yet.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-build/gpu}
mkdir -p "$out"
failed=()

part() { # part NAME COMMAND...
    local name=$1
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee "$out/$name.txt" || failed+=("$name")
}

part machine nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
part env "$python" -m chatpipe env --json
part decode "$python" benchmarks/decode.py --sizes 0.5B --rounds 3
# All stages; their reports have tokens a second and MFU.
part pocket "$python" -m chatpipe run pocket "out=$out/pocket" --json
part ppo "$python" benchmarks/ppo_vs_trl.py
# Tokens a second and MFU of a GPT-2 of 124 M parameters, after 50 steps.
part pretrain "$python" -m chatpipe pretrain gpt2-124m "out=$out/gpt2-124m" pretrain.max_steps=50 pretrain.logging_steps=5 --json

if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
