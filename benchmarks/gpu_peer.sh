#!/usr/bin/env bash
# Fetch nanoGCG 0.3.0 and what it needs of other versions than robench into the ignored folder
# .peer (13 MB as wheels), for a machine with Python 3.12 that has torch already and no network.
#
#   benchmarks/gpu_peer.sh fetch          wheels into .peer-wheels, here
#   benchmarks/gpu_peer.sh unpack         from there into .peer, on that machine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
fetch)
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest .peer-wheels \
        --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 \
        nanogcg==0.3.0 transformers==4.47.1 tokenizers==0.21.0 huggingface_hub==0.27.1
    ;;
unpack)
    python3 -m pip install --quiet --no-index --no-deps --no-compile --target .peer .peer-wheels/*.whl
    ;;
*)
    echo "usage: benchmarks/gpu_peer.sh fetch|unpack" >&2
    exit 2
    ;;
esac
