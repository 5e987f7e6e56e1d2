"""Test what `explain` names: planted biases must come first, clean labels give no sentence.

    python -m benchmarks.explain [--quick] [--json FILE]

The sample's labels are put right, then made wrong in one way: an annotator is careless in half of
the labels, labels take the response that refuses or hedges (the longer one) whatever the content
in 60 % (40 %) of the pairs where the sides differ, or 10 % of all labels are flipped (clean). A
draw is named as an error if the first finding about wrong labels is the planted one, and named
first if it is also the first sentence of all. False are, unless planted: a sentence about an
annotator to whom that draw gave no more wrong labels than the mean; any other sentence about wrong
labels; and one of what all labels follow ("Labels choose ... in 19 %") if the labels put right
take the other side of the two more often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ROOT, Options, Report, main
from benchmarks.planted_noise import Labels, reversed_labels, right
from benchmarks.trust import HELD_OUT, fit, sample_labels
from noisescope.datasets.load import load
from noisescope.scoring import explain as explaining
from noisescope.scoring.explain import Finding
from noisescope.scoring.noise_models import fit_noise
from noisescope.scoring.traits import Trait, compare_sides

Bool = NDArray[np.bool_]
Sides = Mapping[Trait, NDArray[np.int8]]
#: Share of the pairs whose label takes a trait's side whatever the content.
BIAS = {"refusal": 0.6, "hedging": 0.6, "length": 0.4}
LEAST = 0.95


def run(options: Options) -> Report:
    """All kinds over 20 draws, 5 with --quick."""
    report = Report("What explain names of planted biases")
    labels = sample_labels()
    table = load(str(ROOT / "sample_data" / "hh-rlhf" / "train.jsonl.gz")).table
    texts = (table[name].to_pylist() for name in ("prompt", "chosen", "rejected"))
    sides = compare_sides(*texts)
    names = sorted(set(table["annotator"].to_pylist()))
    draws = 5 if options.quick else 20
    start: dict[str, Mapping[str, float]] = {}
    for kind in ("annotator", *BIAS, "clean"):
        count: Counter[str] = Counter()
        for seed in range(draws):
            rng = np.random.default_rng([31, seed])
            wrong, wanted = planted(kind, labels, sides, names, rng)
            found = named(labels, sides, wrong, names, start)
            of_errors = [finding for finding in found if finding.kind != "follows"]
            count["error"] += bool(of_errors) and _name(of_errors[0]) == wanted
            count["first"] += bool(found) and _name(found[0]) == wanted
            others = [finding for finding in found if _name(finding) != wanted]
            rates = {name: wrong[labels.annotators == k].mean() for k, name in enumerate(names)}
            count["false"] += any(
                rates.get(finding.value, 0.0) <= wrong.mean()
                for finding in others
                if finding.kind != "follows"
            )
            count["against"] += any(
                finding.effect.estimate * _leaning(labels, sides, finding.trait) < 0
                for finding in others
                if finding.kind == "follows"
            )
        row = {
            "planted": kind,
            "draws": draws,
            "named as an error": count["error"],
            "named first": count["first"],
            "false sentence of errors": count["false"],
            "false sentence of all labels": count["against"],
        }
        report.tables.setdefault("what explain names", []).append(row)
        if kind == "clean":
            false = count["false"] + count["against"]
            report.at_most("clean draws with a false sentence", false / draws, 0.0)
        else:
            report.at_least(f"{kind} named as an error", count["error"] / draws, LEAST)
            report.at_least(f"{kind} named first", count["first"] / draws, LEAST)
    return report


def _name(finding: Finding) -> str:
    return finding.value or finding.trait


def _leaning(labels: Labels, sides: Sides, name: str) -> float:
    """How much more often the labels put right take the side with this trait than the other."""
    (signs,) = (own for trait, own in sides.items() if trait.name == name)
    return float(np.where(labels.wrong, -signs, signs).sum())


def planted(
    kind: str, labels: Labels, sides: Sides, names: list[str], rng: np.random.Generator
) -> tuple[Bool, str]:
    """Which right labels become wrong [N], and what `explain` should name."""
    count = len(labels.chosen)
    if kind == "clean":
        return rng.random(count) < 0.1, ""
    if kind == "annotator":
        bad = int(rng.integers(len(names)))
        return (labels.annotators == bad) & (rng.random(count) < 0.5), names[bad]
    (signs,) = (own for trait, own in sides.items() if trait.name == kind)
    against = np.where(labels.wrong, -signs, signs) < 0  # of the right labels
    return against & (rng.random(count) < BIAS[kind]), kind


def named(
    labels: Labels,
    sides: Sides,
    wrong: Bool,
    names: list[str],
    start: dict[str, Mapping[str, float]],
) -> list[Finding]:
    """What `explain` finds, in its order."""
    noisy = reversed_labels(right(labels), wrong)
    margins = fit(noisy, HELD_OUT, start).margins.mean(axis=0, dtype=np.float64)
    noise = fit_noise(margins, noisy.facts)
    turned = labels.wrong ^ wrong
    given = explaining.Labels(
        margins,
        noise.p_wrong(margins),
        {trait: np.where(turned, -signs, signs).astype(np.int8) for trait, signs in sides.items()},
        {"annotator": (noisy.annotators, names)},
        noisy.facts.groupings,
    )
    return explaining.explain(given, noise)


if __name__ == "__main__":
    main(__doc__, run)
