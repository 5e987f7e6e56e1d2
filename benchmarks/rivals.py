"""Do the same job as others: which labels of the sample are wrong, and how many.

    python -m benchmarks.rivals [--quick] [--json FILE]

The sample's 4,000 dialogues (1,000 with --quick), its small language model, truth that nobody is
shown. cleanlab: cross-validated probabilities of a logistic regression on the model's features,
sides in random order, then `get_label_quality_scores` and `find_label_issues`. Reward models: the
margin of one fitted to all labels, and PrefCleanBench's vote (arXiv 2509.23564) of five fitted to
samples of them. Argilla: people, who look at pairs in the order that they come in; their number of
errors is that of 100 pairs. Seconds are those after the feature pass, which all but length and
people need.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import noisescope
from benchmarks.data import truth
from benchmarks.detect import prepare
from benchmarks.harness import ROOT, Options, Report, main
from noisescope.models.causal_lm import load_causal_lm
from noisescope.scoring.metrics import auroc

Float = NDArray[np.float64]
SAMPLE = ROOT / "sample_data" / "hh-rlhf"
MODEL = ROOT / "sample_data" / "models" / "tiny-lm"
FOLDS, VOTERS, LOOKS, QUICK = 5, 5, 100, 1000


class Found(NamedTuple):
    """How suspicious each pair is [N], and the number of errors: a range or one number."""

    score: Float
    errors: str


def run(options: Options) -> Report:
    """Every way over the same pairs, features and truth."""
    report = Report("The same job by others")
    limit = QUICK if options.quick else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = folder / "runs"
        material, cost = prepare(
            SAMPLE / "train.jsonl.gz", load_causal_lm(MODEL), runs / ".cache" / "features", limit
        )
        wrong = truth(material.dataset, SAMPLE / "truth.parquet")
        x = np.hstack([group[material.chosen] - group[material.rejected]
                       for group in material.features.values()]).astype(np.float64)  # fmt: skip
        prompts = np.unique(material.dataset.table["prompt"].to_pylist(), return_inverse=True)[1]
        chosen, rejected = material.lengths()
        ways: dict[str, Callable[[], Found]] = {
            "noisescope score": lambda: ours(material.dataset, runs),
            "cleanlab, its defaults": lambda: cleanlab(x, None, tuned=False),
            "cleanlab, prompts held out, strength tuned": lambda: cleanlab(x, prompts, tuned=True),
            "one reward model's margin": lambda: reward(x),
            "vote of five reward models": lambda: vote(x),
            "length: the shorter was chosen": lambda: Found(rejected - chosen, ""),
            "Argilla: people, in the given order": lambda: people(wrong),
        }
        number = int(wrong.sum())
        for way, find in ways.items():
            began = time.perf_counter()
            found = find()
            seconds = time.perf_counter() - began
            first = np.argsort(-found.score, kind="stable")[:number]
            row: dict[str, Any] = {"way": way, "AUROC": float(auroc(found.score, wrong))}
            row |= {f"wrong of the worst {number}": f"{wrong[first].mean():.0%}"}
            row |= {"says are wrong": found.errors, "seconds": round(seconds, 1)}
            report.tables.setdefault(f"{len(wrong):,} pairs, {number} wrong", []).append(row)
    report.facts["feature pass"] = cost
    return report


def ours(dataset: Any, runs: Path) -> Found:
    """p_wrong of `noisescope score`, and the range of wrong labels on its screen."""
    result = noisescope.audit(dataset, MODEL, runs_directory=runs)
    table = result.suspects(len(dataset))
    known = dict(zip(table["pair_id"].to_pylist(), table["p_wrong"].to_pylist(), strict=True))
    p = np.array([known[name] for name in dataset.table["pair_id"].to_pylist()], float)
    share = result.summary.mislabelled_share
    return Found(p, f"{share.low * len(p):.0f} to {share.high * len(p):.0f}")


def cleanlab(x: Float, prompts: NDArray[np.int64] | None, *, tuned: bool) -> Found:
    """Label quality by confident learning, reversed; errors as `find_label_issues` counts them."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels = np.random.default_rng(0).integers(0, 2, len(x))
    sides = np.where(labels[:, None] == 1, x, -x)
    model = LogisticRegressionCV(Cs=8, cv=3) if tuned else LogisticRegression(max_iter=1000)
    folds = FOLDS if prompts is None else GroupKFold(FOLDS)
    p = cross_val_predict(
        make_pipeline(StandardScaler(), model),
        sides,
        labels,
        groups=prompts,
        cv=folds,
        method="predict_proba",
    )
    quality = get_label_quality_scores(labels, p)
    return Found(1 - np.asarray(quality, float), str(int(find_label_issues(labels, p).sum())))


def margins(x: Float, rows: NDArray[np.int64]) -> Float:
    """Margins [N] of a Bradley-Terry reward model fitted to the labels of `rows`."""
    both = np.concatenate([x[rows], -x[rows]])
    labels = np.repeat([1, 0], len(rows))
    scaled = StandardScaler(with_mean=False).fit(both)
    model = LogisticRegression(C=0.01, fit_intercept=False, max_iter=1000)
    return np.asarray(
        model.fit(scaled.transform(both), labels).decision_function(scaled.transform(x))
    )


def reward(x: Float) -> Found:
    """The margin against the label; errors: labels that it contradicts."""
    found = margins(x, np.arange(len(x)))
    return Found(-found, str(int((found < 0).sum())))


def vote(x: Float) -> Found:
    """How many reward models contradict the label; errors: where most of them do."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(x), len(x)) for _ in range(VOTERS)]
    against = np.mean([margins(x, rows) < 0 for rows in draws], axis=0)
    return Found(against, str(int((against > 0.5).sum())))


def people(wrong: NDArray[np.bool_]) -> Found:
    """Pairs as they come; errors by the first hundred, judged without a mistake."""
    share = binomtest(int(wrong[:LOOKS].sum()), LOOKS).proportion_ci(0.9, "exact")
    many = len(wrong)
    return Found(np.zeros(many), f"{share.low * many:.0f} to {share.high * many:.0f}")


if __name__ == "__main__":
    main(__doc__, run)
