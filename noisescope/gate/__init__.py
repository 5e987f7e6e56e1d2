"""Dataset quality gates: checks of an audit against a policy, and a verdict that CI understands.

    verdict = evaluate(Subject(Run(Path("runs/pairs-1a2b3c4d"))), Policy())
    verdict.exit_code      # 0 passed, 1 a check was breached, 2 the evidence does not suffice

policy      what is allowed, from `noisescope.toml` [gate], a file and flags
subject     what an audit knows about the dataset
checks      CHECKS: one function a check
verdict     results together; `junit`, `sarif`, `github` and `markdown` write them for others

No torch anywhere here: a run is judged from its Parquet files alone.
"""
