"""Run `python -m benchmarks.faults`."""

from benchmarks.faults import trials
from benchmarks.harness import main

main(trials.__doc__ or "", trials.run)
