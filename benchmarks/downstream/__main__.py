"""Run `python -m benchmarks.downstream`."""

from benchmarks.downstream import topics
from benchmarks.harness import main

main(topics.__doc__ or "", topics.run)
