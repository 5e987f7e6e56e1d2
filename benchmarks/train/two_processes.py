"""Check that two processes (gloo) train as one does: the same losses at the same global batch.

    python -m benchmarks.train.two_processes

Trains the sample tiny-lm on 200 sample pairs for 8 steps, alone, under torchrun with two processes,
and under accelerate's launcher with two processes that share their weights (FSDP 2), with LoRA
and with `--full`; prints the largest difference between loss curves, and between saved weights.
Exits 1 if a curve differs by more than 1e-4.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SAMPLE = Path(__file__).parents[2] / "sample_data"
PROCESSES = 2
LIMIT = 1e-4
ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES)]
FSDP = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(PROCESSES)]
FSDP += ["--use_fsdp", "--fsdp_version", "2", "--mixed_precision", "no"]
FSDP += ["--num_machines", "1", "--dynamo_backend", "no"]
#: What trains -> its own flags.
KINDS = {"LoRA": ["--learning-rate", "0.002"], "--full": ["--full", "--learning-rate", "0.0002"]}


def train(output: Path, launcher: list[str], flags: list[str]) -> list[float]:
    """Return the loss of every step of one training."""
    line = [*launcher, "-m", "noisescope", "train", str(SAMPLE / "hh-rlhf"), "--objective", "dpo"]
    line += ["--model", str(SAMPLE / "models" / "tiny-lm"), "--output", str(output)]
    line += ["--limit", "200", "--steps", "8", "--batch-size", "16", *flags]
    line += ["--device", "cpu", "--dtype", "float32", "--validation", "0.1"]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stderr[-2000:]}")
    found = json.loads((output / "manifest.json").read_text())["processes"]
    wanted = 1 if launcher == ALONE else PROCESSES
    if found != wanted:
        raise SystemExit(f"{found} processes trained, not {wanted}")
    text = (output / "history.jsonl").read_text()
    return [json.loads(line)["loss"] for line in text.splitlines()]


def difference(one: Path, other: Path) -> float:
    """Return the largest difference between two saved sets of weights with the same files."""
    from safetensors.torch import load_file

    names = [sorted(path.name for path in place.iterdir()) for place in (one, other)]
    if names[0] != names[1]:
        raise SystemExit(f"{one.name} and {other.name} hold different files: {names}")
    file = next(one.glob("*model.safetensors")).name
    mine, theirs = load_file(one / file), load_file(other / file)
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine | theirs)


def main() -> None:
    """Train and compare."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as place:
        for kind, flags in KINDS.items():
            runs = {"one": ALONE, "two": TORCHRUN, "FSDP": FSDP}
            curves = {
                name: train(Path(place) / f"{name}{kind}", launcher, flags)
                for name, launcher in runs.items()
            }
            print(f"{kind}: loss {curves['one'][0]:.4f} -> {curves['one'][-1]:.4f}")
            for name in ("two", "FSDP"):
                gap = max(abs(a - b) for a, b in zip(curves["one"], curves[name], strict=True))
                label = "two processes" if name == "two" else "two processes, FSDP 2"
                print(f"  {label}: largest difference {gap:.1e} (at most {LIMIT:g})")
                worst = max(worst, gap)
            saved = [Path(place) / f"{name}{kind}" for name in ("two", "FSDP")]
            print(f"  weights saved with and without FSDP differ by {difference(*saved):.1e}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
