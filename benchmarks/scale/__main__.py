"""Run `python -m benchmarks.scale`."""

from benchmarks.harness import main
from benchmarks.scale import steps

main(steps.__doc__ or "", steps.run)
