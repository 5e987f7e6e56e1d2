"""Run `python -m benchmarks.images`."""

from benchmarks.harness import main
from benchmarks.images import scorers

main(scorers.__doc__ or "", scorers.run)
