"""Run `python -m benchmarks.replicas`."""

from benchmarks.harness import main
from benchmarks.replicas import compare

main(compare.__doc__ or "", compare.run)
