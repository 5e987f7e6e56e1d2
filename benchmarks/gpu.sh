#!/usr/bin/env bash
# Measure one GPU in at most eight minutes: LoRA replicas of random Llamas of 1B to 7B and their
# reference pass (throughput, share of the peak, memory), and a training step of pictures.
#
#   benchmarks/gpu.sh            # tables on the terminal, numbers in gpu-*.json
#   benchmarks/gpu.sh --tiny     # a tiny Llama on the CPU: only that the script runs
#
# NOISESCOPE_PEER_VENV names a venv with TRL, whose DPOTrainer then trains the same pairs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
if [[ ${1:-} == --tiny ]]; then
    exec "$python" -m benchmarks.replicas.gpu --device cpu --sizes tiny --tokens 16 --steps 2
fi
# Each size by itself: a size that exceeds the card's memory ends alone.
for size in 1b 3b 7b; do
    timeout 110 "$python" -m benchmarks.replicas.gpu --device cuda --sizes "$size" \
        --json "gpu-$size.json" || echo "$size: ended with $?" >&2
done
timeout 120 "$python" -m benchmarks.train --quick --only images --device cuda \
    --json gpu-images.json || echo "images: ended with $?" >&2
