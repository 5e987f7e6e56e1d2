"""A script as a user writes it: `make lint` checks its types strictly, and test_api.py runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import noisescope


def suspicious(dataset: Path, model: Path, runs: Path) -> list[str]:
    """Ids of pairs more likely wrong than right, the worst first."""
    try:
        result = noisescope.audit(
            dataset,
            model=model,
            evidence=noisescope.EvidenceConfig(replicas=2, folds=2),
            score=noisescope.ScoreConfig(k1=5.0),
            runs_directory=runs,
        )
    except noisescope.NoisescopeError as error:
        print(error.message, error.hint or "", file=sys.stderr)
        return []
    rate: float = result.summary.flip_rate.estimate
    low, high = result.summary.flip_rate.low, result.summary.flip_rate.high
    print(f"{rate:.1%} ({low:.1%} to {high:.1%}) in {result.run.directory}")
    rows: list[dict[str, object]] = result.scores.sort_by("rank").to_pylist()
    return [str(row["pair_id"]) for row in rows if float(str(row["p_flip"])) > 0.5]


if __name__ == "__main__":
    print(*suspicious(*map(Path, sys.argv[1:4])), sep="\n")
