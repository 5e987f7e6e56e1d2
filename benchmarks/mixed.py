"""Measure one head against a head a source on datasets of two sources.

    python -m benchmarks.mixed [--quick] [--json FILE] [--model DIR]

Labels are right but for 20 % planted uniform flips; heads hold out whole prompts. Simulated: 1,500
pairs, of which the second source has a half or an eighth, and weights of the features that
correlate 1 to -.5 with those of the first; then the second source with 40 % more flips, with 40 %
of its labels decided by a feature that is worth nothing, and with all labels reversed. Real (not
with --quick): 3,000 pairs of ukp-convarg gold as two halves of its topics, and mixed with LLMBar's
eight files, and with PandaLM's test set. AUROC of p_wrong for the planted flips, means over seeds;
`own` is the share of seeds in which sources have heads of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.detect import prepare
from benchmarks.harness import Options, Report, main
from benchmarks.models import smollm2
from benchmarks.trust import ukp_labels
from noisescope.models.causal_lm import load_causal_lm
from noisescope.replicas.head import HeadConfig, HeadFit, fit_heads
from noisescope.scoring.metrics import auroc
from noisescope.scoring.noise_models import fit_noise
from noisescope.scoring.pair_facts import PairFacts

Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

PAIRS, WIDTH, EACH = 1500, 16, 4
FLIPS = 0.2
CONFIG = HeadConfig(replicas=2, identity=False)
PANDALM = "prompt=instruction,a=response1,b=response2,preference=annotator1,a_wins=1,b_wins=2,tie=0"


@dataclass(frozen=True)
class Mixture:
    """Right labels of several sources: features [R, D], sides, prompts and sources [N].

    `wrong` [N] marks labels reversed before flips are planted.
    """

    features: dict[str, NDArray[np.float32]]
    chosen: Int
    rejected: Int
    prompts: Int
    sources: Int
    wrong: Bool

    def some(self, pairs: NDArray[Any]) -> Mixture:
        """The mixture of some of the pairs."""
        parts = (self.chosen, self.rejected, self.prompts, self.sources, self.wrong)
        return Mixture(self.features, *(part[pairs] for part in parts))

    def flipped(self, swap: Bool) -> Mixture:
        """The labels in `swap` [N] reversed and marked."""
        return replace(
            self,
            chosen=np.where(swap, self.rejected, self.chosen),
            rejected=np.where(swap, self.chosen, self.rejected),
            wrong=self.wrong ^ swap,
        )


def run(options: Options) -> Report:
    """The simulated table, then the real one."""
    report = Report("One head against a head a source")
    seeds = 5 if options.quick else 10
    rows = []
    for share in (0.5, 0.125):
        for name, correlation in (("1", 1.0), (".8", 0.8), (".5", 0.5), ("0", 0.0), ("-.5", -0.5)):
            drawn = [simulated(correlation, share, seed) for seed in range(seeds)]
            rows.append(compared(f"correlation {name}, {share:.1%} second", drawn))
        alike = [simulated(1.0, share, seed) for seed in range(seeds)]
        noisy = [noisier(one, seed) for seed, one in enumerate(alike)]
        rows.append(compared(f"noisier, {share:.1%} second", noisy))
        biased = [biased_by(one, seed) for seed, one in enumerate(alike)]
        rows.append(compared(f"biased, {share:.1%} second", biased))
        swapped = [one.flipped(one.sources == 1) for one in alike]
        rows.append(compared(f"reversed, {share:.1%} second", swapped))
    report.tables["simulated"] = rows
    targets(rows, report)
    if not options.quick:
        real = list(mixtures(options))
        report.tables["real pairs"] = [
            compared(name, [drawn(one, seed) for seed in range(5)]) for name, one in real
        ]
        for row in report.tables["real pairs"]:
            report.at_least(f"{row['labels']}: gain", row["by source"] - row["one head"], -0.001)
    return report


def targets(rows: list[dict[str, Any]], report: Report) -> None:
    """Nothing lost where sources agree, noise and reversal not believed, and gains elsewhere."""
    for row in rows:
        name, gain = row["labels"], row["by source"] - row["one head"]
        if not name.startswith("biased"):
            report.at_least(f"{name}: gain", gain, -0.001)
        if name.startswith(("correlation 1", "noisier", "reversed")):
            report.at_most(f"{name}: heads of their own", row["own"], 0.1)
        if name.startswith("reversed"):
            report.at_least(f"{name}: named", row["named"], 0.9)
        if name.startswith(("correlation 0", "correlation -.5")):
            report.at_least(f"{name}: gain", gain, 0.02)


def simulated(correlation: float, share: float, seed: int) -> Mixture:
    """Pairs of prompts with four responses, a score each, and wishes that differ by source."""
    rng = np.random.default_rng([seed, int(1000 * share)])
    left, right = np.triu_indices(EACH, 1)
    prompts = PAIRS // len(left)
    x = rng.normal(size=(prompts * EACH, WIDTH))
    first, other = np.linalg.qr(rng.normal(size=(WIDTH, 2)))[0].T
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    source = (np.arange(prompts) < share * prompts).astype(np.int64)
    score = np.where(np.repeat(source, EACH) == 1, x @ second, x @ first)
    score += 0.4 * rng.normal(size=len(x))
    a, b = ((np.arange(prompts)[:, None] * EACH + side).ravel() for side in (left, right))
    better, prompt = score[a] > score[b], a // EACH
    sides = np.where(better, a, b), np.where(better, b, a)
    right_ = np.zeros(len(a), bool)
    clean = Mixture({"x": x.astype(np.float32)}, *sides, prompt, source[prompt], right_)
    return drawn(clean, seed)


def drawn(clean: Mixture, seed: int) -> Mixture:
    """Uniform flips."""
    return clean.flipped(np.random.default_rng([seed, 5]).random(len(clean.chosen)) < FLIPS)


def noisier(mixture: Mixture, seed: int) -> Mixture:
    """40 % of the second source's labels reversed once more."""
    more = np.random.default_rng([seed, 6]).random(len(mixture.chosen)) < 0.4
    return mixture.flipped(more & (mixture.sources == 1))


def biased_by(mixture: Mixture, seed: int) -> Mixture:
    """40 % of the second source's labels decided by the first feature."""
    x = mixture.features["x"][:, 0]
    lazy = np.random.default_rng([seed, 7]).random(len(mixture.chosen)) < 0.4
    against = x[mixture.chosen] < x[mixture.rejected]
    return mixture.flipped(lazy & against & (mixture.sources == 1))


def mixtures(options: Options) -> Iterator[tuple[str, Mixture]]:
    """ukp-convarg gold in two halves, and with other sets."""
    gold = ukp_labels(options)
    swap = gold.wrong
    rng = np.random.default_rng(0)
    some = rng.permutation(len(swap))[:3000]
    half = np.isin(gold.prompts, rng.permutation(int(gold.prompts.max()) + 1)[::2])
    one = Mixture(
        dict(gold.features),
        np.where(swap, gold.rejected, gold.chosen),
        np.where(swap, gold.chosen, gold.rejected),
        gold.prompts,
        half.astype(np.int64),
        np.zeros(len(swap), bool),
    ).some(some)
    yield "ukp, two halves of the topics", one
    policy = load_causal_lm(options.model or str(smollm2()), max_length=512)
    for name, columns in (("llmbar", None), ("pandalm", PANDALM)):
        with tempfile.TemporaryDirectory() as scratch:
            material, _ = prepare(options.data / name, policy, Path(scratch), columns=columns)
        table = material.dataset.table
        prompts, files = (
            np.unique(table.column(column).to_pylist(), return_inverse=True)[1]
            for column in ("prompt", "source")
        )
        right = np.zeros(len(prompts), bool)
        other = Mixture(
            dict(material.features), material.chosen, material.rejected, prompts, files, right
        )
        yield f"ukp and {name}", joined(replace(one, sources=np.zeros_like(one.sources)), other)


def joined(one: Mixture, other: Mixture) -> Mixture:
    """The pairs of both; sources and prompts of the second follow those of the first."""
    rows = len(next(iter(one.features.values())))
    return Mixture(
        {name: np.concatenate([one.features[name], other.features[name]]) for name in one.features},
        np.concatenate([one.chosen, other.chosen + rows]),
        np.concatenate([one.rejected, other.rejected + rows]),
        np.concatenate([one.prompts, other.prompts + one.prompts.max() + 1]),
        np.concatenate([one.sources, other.sources + one.sources.max() + 1]),
        np.concatenate([one.wrong, other.wrong]),
    )


def compared(name: str, mixtures: list[Mixture]) -> dict[str, Any]:
    """AUROC of p_wrong with one head and with heads by source, means over the mixtures."""
    rows = [row(mixture) for mixture in mixtures]
    print(name, rows[-1], flush=True)
    means = {key: float(np.mean([one[key] for one in rows])) for key in rows[0]}
    gains = [one["by source"] - one["one head"] for one in rows]
    return {"labels": name, **means, "least gain": min(gains)}


def row(mixture: Mixture) -> dict[str, float]:
    """One mixture: AUROC over all pairs, and over those that are not of the first source."""
    one, own = fit(mixture, None), fit(mixture, mixture.sources)
    before, after = (p_wrong(mixture, heads) for heads in (one, own))
    rest, wrong = mixture.sources > 0, mixture.wrong
    found = own.by_source
    return {
        "one head": float(auroc(before, wrong)),
        "by source": float(auroc(after, wrong)),
        "one head, others": float(auroc(before[rest], wrong[rest])),
        "by source, others": float(auroc(after[rest], wrong[rest])),
        "own": float(found is not None and found.own),
        "named": float(found is not None and bool(found.reversed_ones)),
    }


def fit(mixture: Mixture, sources: Int | None) -> HeadFit:
    """Heads that hold out whole prompts."""
    keys, prompts = np.arange(len(mixture.chosen)).astype(np.uint64), mixture.prompts
    sides = mixture.chosen, mixture.rejected
    held_out = prompts.astype(np.uint64)
    return fit_heads(mixture.features, *sides, keys, CONFIG, held_out=held_out, sources=sources)


def p_wrong(mixture: Mixture, heads: HeadFit) -> NDArray[np.float64]:
    """p_wrong [N] of the mean margins, sources known to the noise models."""
    margins = heads.margins.mean(axis=0, dtype=np.float64)
    return fit_noise(margins, PairFacts(sources=mixture.sources)).p_wrong(margins)


if __name__ == "__main__":
    main(__doc__, run)
