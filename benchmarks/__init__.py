"""Measure speed, memory and detection: `python -m benchmarks.NAME [--quick] [--json FILE]`."""
