"""Run `python -m benchmarks.train`."""

from benchmarks.train.compare import main

main()
