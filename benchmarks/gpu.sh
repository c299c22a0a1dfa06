#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in order of worth: at most 11 minutes on an H100.
#
#   benchmarks/gpu.sh OUT                 on CUDA: an 8 B and a 1 B shape with random weights, bf16
#   SIZE=toy benchmarks/gpu.sh OUT        the same commands on a CPU, at sizes that say nothing
#
# Each step has its own time limit and writes OUT/NAME.log as it goes; one that fails or is too slow
# stops no other. OUT/summary.txt has a line for each: name, exit code (124: out of time), seconds.
# The tables are in OUT/RESULTS.md, to be appended to benchmarks/RESULTS.md. nanoGCG is measured where
# benchmarks/gpu_peer.sh has put it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$1
mkdir -p "$out"
BENCHMARK_RESULTS=$(realpath "$out")/RESULTS.md
export BENCHMARK_RESULTS
peer=${PEER:-.peer}
big=$(mktemp -d)
trap 'rm -rf "$big"' EXIT

trained="circuit_breaker:paper crl:paper es2:paper"
if [ "${SIZE:-gpu}" = toy ]; then
    on="--device cpu --dtype bfloat16" device=cpu large=toy small=toy slack=9
    gcg="--behaviors 2 --steps 1 --width 16 --topk 8 --rounds 1" width=8
    soft="--behaviors 2 --alone 1 --steps 1 --rounds 1" replies="--prompts 2 --max-new-tokens 2 --rounds 1"
    train="--steps 1 --defenses $trained" matrix="--attacks direct --defenses none --n 2 --n-benign 1"
    growth="--repeats 1 --vary blocks" marker="not gpu" tests=tests/test_pretended_device.py
else
    on="--device cuda --dtype bfloat16" device=cuda large=8b small=1b slack=1
    gcg="--behaviors 2 --steps 6 --rounds 1" width=512
    soft="--behaviors 32 --alone 1 --steps 10 --rounds 1" replies="--prompts 64 --rounds 1"
    train="--steps 2 --defenses $trained" matrix="--matrix full"
    growth="--repeats 1" marker=gpu
    tests="tests/model/test_shared_prefix.py tests/methods/test_devices.py"
fi
if [ -d "$peer" ]; then
    sides="--peer $peer"
else
    sides="--sides robench"
    echo "no $peer: nanoGCG is not measured (benchmarks/gpu_peer.sh fetches it)"
fi
twenty='!!!!!!!!!!!!!!!!!!!!'

# step SECONDS NAME COMMAND...
step() {
    local limit=$(($1 * slack)) name=$2 begin=$SECONDS code
    shift 2
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null
    code=$?
    echo "$name $code $((SECONDS - begin))" | tee -a "$out/summary.txt"
}

# shellcheck disable=SC2086
{
    step 60 weights python -m benchmarks.models $large "$big/$large" --device $device
    step 60 tests python -m pytest -q -n 4 -m "$marker" -k "not phi3" $tests
    step 120 gcg_large python -m benchmarks.gcg --weights "$big/$large" $on $gcg --init "$twenty" $sides
    step 45 soft_prompt python -m benchmarks.soft_prompt --model "$big/$large" $on $soft
    step 100 training python -m benchmarks.training --model "$big/$large" $on $train
    step 100 organism python -m robench run $matrix --device $device --dtype float32 --out "$out/organism"
    step 40 generate python -m benchmarks.generate --model "$big/$large" $on $replies
    step 40 profile python -m benchmarks.step_profile --model "$big/$large" $on --width $width
    rm -rf "${big:?}/$large"
    step 30 weights_small python -m benchmarks.models $small "$big/$small" --device $device
    step 60 gcg_small python -m benchmarks.gcg --weights "$big/$small" $on $gcg --init "$twenty" $sides
    step 60 growth python -m benchmarks.growth --model "$big/$small" $on $growth
}
cp robench/runs/engine_shares.json "$out"
