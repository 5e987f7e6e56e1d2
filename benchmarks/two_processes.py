"""Two processes (gloo) train as one does: the same loss curve at the same global batch.

    python -m benchmarks.two_processes

Trains the sample tiny-lm on 200 sample pairs for 8 steps, alone and under torchrun with two
processes, and prints the largest difference between the two loss curves. Exits 1 above 1e-4.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SAMPLE = Path(__file__).parents[1] / "sample_data"
PROCESSES = 2
LIMIT = 1e-4


def losses(output: Path, launcher: list[str]) -> list[float]:
    """The loss of every step of one training."""
    line = [*launcher, "-m", "noisescope", "train", str(SAMPLE / "hh-rlhf"), "--objective", "dpo"]
    line += ["--model", str(SAMPLE / "models" / "tiny-lm"), "--output", str(output)]
    line += ["--limit", "200", "--steps", "8", "--batch", "16", "--lr", "0.002"]
    line += ["--device", "cpu", "--dtype", "float32", "--validation", "0.1"]
    subprocess.run(line, check=True, capture_output=True)
    found = json.loads((output / "manifest.json").read_text())["processes"]
    wanted = 1 if launcher == [sys.executable] else PROCESSES
    if found != wanted:
        raise SystemExit(f"{found} processes trained, not {wanted}")
    return [json.loads(line)["loss"] for line in (output / "history.jsonl").open()]


def main() -> None:
    """Train twice and compare."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES)]
    with tempfile.TemporaryDirectory() as place:
        one = losses(Path(place) / "one", [sys.executable])
        two = losses(Path(place) / "two", torchrun)
    gap = max(abs(a - b) for a, b in zip(one, two, strict=True))
    print(f"loss {one[0]:.4f} -> {one[-1]:.4f}; largest difference {gap:.1e} (at most {LIMIT:g})")
    sys.exit(gap > LIMIT)


if __name__ == "__main__":
    main()
