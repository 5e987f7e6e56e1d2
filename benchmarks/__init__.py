"""Speed, memory and detection quality: `python -m benchmarks.NAME [--quick] [--json FILE]`."""
