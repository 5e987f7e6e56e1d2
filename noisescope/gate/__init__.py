"""Check an audited dataset against a policy, with a verdict and output formats for CI.

    verdict = check_gate(Subject(Run(Path("runs/pairs-1a2b3c4d"))), Policy())
    verdict.exit_code      # 0 passed, 1 a check failed, 3 inconclusive

policy      thresholds, from `noisescope.toml` [gate], a file and flags
input       the run that is checked, and its baseline
checks      CHECKS: one function per check
verdict     the results together; `formats` writes them as JUnit, SARIF, Markdown and for GitHub

Reads a run's Parquet files; no torch. May import `scoring`, `storage` and below; only `cli` imports
it.
"""
