"""Load W and Gamma for every pair of a dataset from a run.

    weights = run_weights(find_run("hh-rlhf", Path("runs")), dataset, WeightRule())
    weights.weight, weights.gamma   # [N], in the dataset's row order

Weights belong to the labels they were made for. Those of a different dataset, or of the same pairs
with a flipped label, are refused by fingerprint; so are weights that miss a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import DataError, RunError, UsageError, first_five
from noisescope.pairs import PreferenceDataset, digest, keys_of
from noisescope.scoring.run_scores import REVIEWED, RunScores, read_run_scores
from noisescope.scoring.score import ScoreConfig
from noisescope.scoring.trust import WEAK_WORD
from noisescope.scoring.weigh import BELIEVED, SCHEMES, Adaptive, weigh
from noisescope.scoring.weights import even
from noisescope.storage.printable import plural
from noisescope.storage.run import Run, finished_runs

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float64]
U64 = NDArray[np.uint64]
Bool = NDArray[np.bool_]

#: What the schemes of `scoring.weigh` are in a description; u is described by its constants.
WORDS = {
    "p_wrong": "W = max(0, 1 - 2 p_wrong), Gamma = 0",
    "p_flip": "W = max(0, 1 - 2 p_flip), Gamma = 0",
    "reviews": "W = 1, Gamma = 0",
    "prior": "the label's chance of an error, p_prior",
    "soft": "soft labels, 1 - p_wrong",
    "margin": "W = 1, Gamma = the held-out margin, calibrated",
}


@final
@dataclass(frozen=True)
class WeightRule:
    """How scores become weights. `rho` (Eq. 11), k1, k2 and c2 (Eq. 14-15) default to those
    of the run; if all are None, its W and Gamma are taken as they are."""

    scheme: str = "u"
    k1: float | None = None
    k2: float | None = None
    c2: float | None = None
    rho: float | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise UsageError(
                f"--weighting must be one of {', '.join(SCHEMES)}, not {self.scheme}",
                hint="p_wrong and p_flip are max(0, 1 - 2 p), u is the paper's W and Gamma, "
                "reviews is people's decisions alone, prior is for --objective forward-dpo, soft "
                "for soft-dpo, margin for distilled-dpo.",
            )
        _ = self.over({})

    @property
    def restated(self) -> bool:
        """Whether a constant is given."""
        return any(value is not None for value in (self.k1, self.k2, self.c2, self.rho))

    def over(self, scored: Mapping[str, Any]) -> ScoreConfig:
        """The given constants over those a run was scored with (its manifest's `constants`; the
        usual ones if an older run has none). Raises UsageError."""
        given = {"rho": self.rho, "k1": self.k1, "k2": self.k2, "c2": self.c2}
        stated = {name: value for name, value in given.items() if value is not None}
        return ScoreConfig.of({**scored, **stated})


@final
@dataclass(frozen=True)
class PairWeights:
    """W [N] and Gamma [N] in the dataset's row order, and where they come from.

    `doubt`: why their audit does not support them, empty if it does or if there is none.
    `judged` counts the pairs that people decided about. Labels of pairs in `wrong` [N] are
    reversed before training, and W and Gamma are those of the reversed label; None: no label.
    """

    weight: Float
    gamma: Float
    description: str
    scheme: str = ""  # one of `SCHEMES`; empty: not known
    doubt: str = ""
    judged: int = 0
    wrong: Bool | None = None

    @property
    def even(self) -> bool:
        """Whether all pairs weigh the same, to one in a hundred, and no label is reversed."""
        return even(self.weight, self.gamma) and not (self.wrong is not None and self.wrong.any())

    @property
    def fingerprint(self) -> str:
        """20 hex digits over every weight, and the reversed labels if there are any."""
        parts = [self.weight.tobytes().hex(), self.gamma.tobytes().hex()]
        if self.wrong is not None and self.wrong.any():
            parts.append(self.wrong.tobytes().hex())
        return digest(*parts)

    def among(self, kept: Bool) -> PairWeights:
        """The weights of the pairs in `kept` [N]."""
        wrong = None if self.wrong is None else self.wrong[kept]
        return replace(self, weight=self.weight[kept], gamma=self.gamma[kept], wrong=wrong)

    def corrected(self, table: pa.Table) -> pa.Table:
        """The pairs [N] of the weights with the labels in `wrong` reversed."""
        import pyarrow.compute as pc

        if self.wrong is None or not self.wrong.any():
            return table
        sides = [table.column(name).combine_chunks() for name in ("chosen", "rejected")]
        for name, one, other in zip(("chosen", "rejected"), sides, sides[::-1], strict=True):
            at = table.column_names.index(name)
            table = table.set_column(at, table.schema.field(at), pc.if_else(self.wrong, other, one))
        return table


def find_audit(dataset: PreferenceDataset, runs_directory: Path) -> Run | None:
    """The latest finished run of exactly this dataset, or None."""
    found = [
        run
        for run in finished_runs(runs_directory)
        if source_of(run) == dataset.source_fingerprint and run.scores_path.is_file()
    ]
    return found[-1] if found else None


def source_of(run: Run) -> Any:
    """Fingerprint of all pairs that a run's source states, those set aside included."""
    facts = run.manifest().get("facts", {})
    return facts.get("source_fingerprint") or run.plan().get("dataset_fingerprint")


def run_weights(run: Run, dataset: PreferenceDataset, rule: WeightRule) -> PairWeights:
    """Weights of an audit's scores. Raises RunError for another dataset's, DataError for gaps."""
    check_dataset(str(run.directory), source_of(run), run.plan().get("dataset"), dataset)
    if not run.scores_path.is_file():
        raise RunError(f"{run.directory} has no scores", hint="Make them: noisescope score DATASET")
    scores = read_run_scores(run)
    adaptive, how = None, WORDS.get(rule.scheme, "W and Gamma as scored")
    if rule.scheme == "u" and rule.restated:
        c = rule.over(scores.manifest.get("constants", {}))
        metric = c.metric(scores.modality)
        u = scores.columns[metric] if rule.rho is None else _at_rho(scores, c, metric)
        adaptive = Adaptive(u, c)
        how = f"W = 1/(1 + {c.k1:g} {metric}), Gamma = {c.k2:g} {metric}² + {c.c2:g}"
        how += "" if rule.rho is None else f", {metric} at rho {rule.rho:g}"
    wrong = np.zeros(len(scores), bool)
    if rule.scheme not in BELIEVED:  # whose Gamma is below 0 for a label found wrong
        wrong[[at for at, verdict in scores.verdicts.items() if verdict == "wrong"]] = True
    weight, gamma = weigh(scores, rule.scheme, wrong, adaptive)
    judged = int(np.isfinite(scores.columns[REVIEWED]).sum())
    if judged:
        how += f"; {plural(judged, 'pair')} as reviewed"
    if wrong.any():
        how += f", {plural(int(wrong.sum()), 'label')} reversed"
    source = f"run {run.directory.name}"
    aside = int(scores.manifest.get("facts", {}).get("set_aside", 0))
    names = dataset.table.column("pair_id").to_pylist()
    weight, gamma, at = in_order(names, scores.keys, weight, gamma, source, aside)
    return PairWeights(
        weight,
        gamma,
        f"{source}: {how}",
        scheme=rule.scheme,
        doubt=_doubt(run, rule.scheme),
        judged=judged,
        wrong=wrong[at] & (at >= 0),
    )


def _doubt(run: Run, scheme: str) -> str:
    """Why weights of this scheme should not be used (scoring/trust.py); empty if they may be.

    "prior" rests on rates, reviews and other evidence: an audit too weak to change single labels
    supports these, too (measured: benchmarks/LOG.md).
    """
    summary = run.manifest().get("summary", {})
    trust = summary.get("trust")
    if summary.get("chance"):
        return (
            f"{run.directory}: its replicas are no better than chance, so these weights carry no "
            "information about wrong labels; score again with a better --model"
        )
    if trust is None:
        return f"{run.directory} does not state how far to trust it: repeat its `noisescope score`"
    if trust["acts"] or (scheme == "prior" and trust["word"] == WEAK_WORD):
        return ""
    return f"{run.directory}: {trust['word']}. {trust['sentence']}"


def _at_rho(scores: RunScores, config: ScoreConfig, metric: str) -> Float:
    """u or u_released at another rho, from the run's margins, in the order of its scores."""
    import pyarrow.parquet as pq

    from noisescope.scoring.margins import read_margins
    from noisescope.scoring.score import judge, read_averages

    assert config.rho is not None
    run = scores.run
    found, beta = read_margins(run.directory), run.plan()["evidence"]["beta"]
    columns, _ = judge(found, beta=beta, rho=config.rho, config=config, averages=read_averages(run))
    names = pq.read_table(run.pairs_path, columns=["pair_id"]).column(0).to_pylist()
    made = np.full(len(scores), np.nan)
    made[scores.positions(names)] = columns[metric]
    return made


def check_dataset(where: str, theirs: Any, name: Any, dataset: PreferenceDataset) -> None:
    """Refuse weights made for other pairs, labels or facts (annotators, votes, groups)."""
    if theirs != dataset.source_fingerprint:
        raise RunError(
            f"{where} holds weights for a different dataset ({name}, fingerprint {theirs}); "
            f"{dataset.name}, as its columns are read here, has {dataset.source_fingerprint}",
            hint="Leave --weights out: the dataset's own audit is found, or made first.",
        )


def in_order(
    names: Sequence[str], keys: U64, weight: Float, gamma: Float, source: str, aside: int
) -> tuple[Float, Float, NDArray[np.int64]]:
    """W and Gamma of the pairs `names` [N], and the place [N] of each among `keys` (-1: none).

    `keys` are hashed ids, ascending, of which there is one at least. The `aside` pairs that an
    audit set aside weigh 0. Raises DataError naming pairs without a usable weight.
    """
    wanted = keys_of(names)
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    known = np.isin(wanted, keys)
    usable = np.isfinite(weight) & (weight >= 0) & np.isfinite(gamma)
    missing = [names[i] for i in np.flatnonzero(~known).tolist()]
    broken = [names[i] for i in np.flatnonzero(known).tolist() if not usable[at[i]]]
    faults = [
        f"{len(ids):,} of {len(names):,} pairs have {what} in {source}: {first_five(ids)}"
        for ids, what in (
            (missing if len(missing) > aside else [], "no weight"),
            (broken, "a weight below 0 or not finite"),
        )
        if ids
    ]
    if faults:
        raise DataError(
            "; ".join(faults),
            hint="Make weights for this dataset: noisescope score DATASET, then leave --weights "
            "out; or train without: --weights none.",
        )
    return np.where(known, weight[at], 0), np.where(known, gamma[at], 0), np.where(known, at, -1)
