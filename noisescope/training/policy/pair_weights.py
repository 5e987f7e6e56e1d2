"""Load W and Gamma for every pair of a dataset, from a run or a file.

    weights = run_weights(find_run("hh-rlhf", Path("runs")), dataset, WeightRule())
    weights.weight, weights.gamma   # [N], in the dataset's row order

Weights belong to the labels they were made for. Those of a different dataset, or of the same pairs
with a flipped label, are refused by fingerprint; so are weights that miss a pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.readers import read_table
from noisescope.errors import DataError, RunError, UsageError, first_five
from noisescope.pairs import PreferenceDataset, digest
from noisescope.scoring.reviews import found_wrong
from noisescope.scoring.score import ScoreConfig
from noisescope.scoring.scores import require_scores
from noisescope.scoring.weights import adaptive_weights, belief, believed_margin, even
from noisescope.storage.printable import plural
from noisescope.storage.run import Run, finished_runs

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float64]

#: How a pair's scores become its weight: max(0, 1 - 2 p), Adaptive-DPO's W and Gamma, or W = 1 and
#: Gamma the log odds that the label is right, by p_prior, p_wrong or the audit's calibrated margin.
SCHEMES = ("p_wrong", "p_flip", "u", "prior", "soft", "margin")
#: Those that a file of probabilities serves: the column, and the words of a description.
PROBABILITIES = {
    "prior": ("p_prior", "the label's chance of an error, p_prior"),
    "soft": ("p_wrong", "soft labels, 1 - p_wrong"),
}
#: What a weights file may call W.
WEIGHT_NAMES = ("W", "weight", "w")


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
                hint="p_wrong and p_flip are max(0, 1 - 2 p), u is the paper's W and Gamma, prior "
                "is for --objective forward-dpo, soft for soft-dpo, margin for distilled-dpo.",
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
        known = {field.name for field in fields(ScoreConfig)}
        return ScoreConfig(
            **{name: value for name, value in scored.items() if name in known}
            | {name: value for name, value in given.items() if value is not None}
        )


@final
@dataclass(frozen=True)
class PairWeights:
    """W [N] and Gamma [N] in the dataset's row order, and where they come from.

    `doubt`: why their audit is too weak to act on, empty if it is not or if there is none.
    `judged` counts the pairs that people judged.
    """

    weight: Float
    gamma: Float
    description: str
    scheme: str = ""  # one of `SCHEMES`; empty: not known
    doubt: str = ""
    judged: int = 0

    @property
    def even(self) -> bool:
        """Whether all pairs weigh the same, to one in a hundred."""
        return even(self.weight, self.gamma)

    @property
    def fingerprint(self) -> str:
        """20 hex digits over every weight."""
        return digest(self.weight.tobytes().hex(), self.gamma.tobytes().hex())


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
    import pyarrow.parquet as pq

    _check_dataset(str(run.directory), source_of(run), run.plan().get("dataset"), dataset)
    if not run.scores_path.is_file():
        raise RunError(f"{run.directory} has no scores", hint="Make them: noisescope score DATASET")
    require_scores(run)
    names = ["W", "gamma", "u", "u_released", "p_wrong", "p_prior", "p_flip", "margin"]
    table = pq.read_table(run.scores_path, columns=["pair_id", *names])
    columns = {name: _numbers(table, name) for name in names}
    judged = dict(zip(*found_wrong(run), strict=True))
    if judged:
        theirs = np.array([judged.get(n, np.nan) for n in table.column("pair_id").to_pylist()])
        for name in ("p_wrong", "p_prior"):
            columns[name] = np.where(np.isnan(theirs), columns[name], theirs)
    if rule.scheme in ("p_wrong", "p_flip"):
        made = np.maximum(0.0, 1.0 - 2.0 * columns[rule.scheme]), np.zeros(table.num_rows)
        how = f"W = max(0, 1 - 2 {rule.scheme}), Gamma = 0"
    elif rule.scheme in PROBABILITIES:
        name, how = PROBABILITIES[rule.scheme]
        made = np.ones(table.num_rows), belief(columns[name])
    elif rule.scheme == "margin":
        made = np.ones(table.num_rows), believed_margin(columns["margin"])
        how = "W = 1, Gamma = the held-out margin, calibrated"
    elif rule.restated:
        c = rule.over(run.manifest().get("constants", {}))
        metric = c.metric(str(run.plan().get("modality", "text")))
        u = columns[metric] if rule.rho is None else _at_rho(run, table, c, metric)
        made = adaptive_weights(u, c.weights)
        how = f"W = 1/(1 + {c.k1:g} {metric}), Gamma = {c.k2:g} {metric}² + {c.c2:g}"
        how += "" if rule.rho is None else f", {metric} at rho {rule.rho:g}"
    else:
        made = columns["W"], columns["gamma"]
        how = "W and Gamma as scored"
    if judged and rule.scheme in ("p_wrong", *PROBABILITIES):
        how += f"; {plural(len(judged), 'pair')} as reviewed"
    source = f"run {run.directory.name}"
    aside = int(run.manifest().get("facts", {}).get("set_aside", 0))
    found = _matched(dataset, table, *made, source, f"{source}: {how}", aside)
    return replace(found, scheme=rule.scheme, doubt=_doubt(run), judged=len(judged))


def _doubt(run: Run) -> str:
    """Why a run's labels should not be acted on (scoring/trust.py); empty if they may be."""
    summary = run.manifest().get("summary", {})
    trust = summary.get("trust")
    if summary.get("chance"):
        return (
            f"{run.directory}: its replicas are no better than chance, so these weights carry no "
            "information about wrong labels; score again with a better --model"
        )
    if trust is None:
        return f"{run.directory} does not state how far to trust it: repeat its `noisescope score`"
    return "" if trust["acts"] else f"{run.directory}: {trust['word']}. {trust['sentence']}"


def _at_rho(run: Run, table: pa.Table, config: ScoreConfig, metric: str) -> Float:
    """u or u_released at another rho, from the run's margins, in the order of its scores."""
    import pyarrow.parquet as pq

    from noisescope.scoring.margins import read_margins
    from noisescope.scoring.score import judge, read_averages

    assert config.rho is not None
    found, beta = read_margins(run.directory), run.plan()["evidence"]["beta"]
    columns, _ = judge(found, beta=beta, rho=config.rho, config=config, averages=read_averages(run))
    names = pq.read_table(run.pairs_path, columns=["pair_id"]).column(0).to_pylist()
    made = dict(zip(names, columns[metric].tolist(), strict=True))
    return np.array([made.get(name, np.nan) for name in table.column("pair_id").to_pylist()])


def file_weights(path: Path, dataset: PreferenceDataset, scheme: str = "") -> PairWeights:
    """Weights of a Parquet, CSV or JSONL file: pair_id, W (or weight), gamma (0 where absent).

    The schemes of PROBABILITIES need pair_id and their column alone. Raises RunError for another
    dataset's, DataError for gaps or missing columns.
    """
    table = read_table(path)
    facts = _origin(table)
    description = f"file {path.name}"
    if "dataset_fingerprint" not in facts:
        description += " (it names no dataset: matched by pair_id alone)"
    else:
        _check_dataset(str(path), facts["dataset_fingerprint"], facts.get("dataset"), dataset)
    believed = PROBABILITIES.get(scheme)
    wanted = WEIGHT_NAMES if believed is None else (believed[0],)
    name = next((name for name in wanted if name in table.column_names), None)
    if "pair_id" not in table.column_names or name is None:
        raise DataError(
            f"{path} has the columns {', '.join(table.column_names)}; "
            f"pair_id and {wanted[0]} are needed",
            hint="Make one: noisescope export --format weights",
        )
    weight, gamma = _numbers(table, name), np.zeros(table.num_rows)
    if believed is not None:
        weight, gamma = np.ones(table.num_rows), _odds(name, weight)
        description += f": {believed[1]}"
    elif "gamma" in table.column_names:
        gamma = _numbers(table, "gamma")
    aside = int(facts.get("set_aside", 0))
    found = _matched(dataset, table, weight, gamma, path.name, description, aside)
    return replace(found, scheme=scheme or str(facts.get("weight", "")))


def _odds(name: str, p: Float) -> Float:
    """`belief` of a file's column p [N]. Raises DataError for numbers outside [0, 1]."""
    outside = (p < 0) | (p > 1)
    if outside.any():
        raise DataError(
            f"{name} is {p[outside][0]:g} for one of the pairs, and must be in [0, 1]",
            hint="Make one: noisescope export --format weights",
        )
    return belief(p)


def _check_dataset(where: str, theirs: Any, name: Any, dataset: PreferenceDataset) -> None:
    """Refuse weights made for other pairs or labels."""
    if theirs != dataset.source_fingerprint:
        raise RunError(
            f"{where} holds weights for a different dataset ({name}, fingerprint {theirs}); "
            f"{dataset.name} has {dataset.source_fingerprint}",
            hint="Leave --weights out: the dataset's own audit is found, or made first.",
        )


def _origin(table: pa.Table) -> Mapping[str, Any]:
    """The dataset that an exported Parquet file was made for, by its metadata."""
    for value in (table.schema.metadata or {}).values():
        try:
            facts = json.loads(value)
        except ValueError:
            continue
        if isinstance(facts, dict) and "dataset_fingerprint" in facts:
            return facts
    return {}


def _numbers(table: pa.Table, name: str) -> Float:
    """A column as float64. Raises DataError if it holds no numbers."""
    import pyarrow as pa

    try:
        column = table.column(name).cast(pa.float64()).combine_chunks()
    except pa.ArrowException as error:
        raise DataError(
            f"column {name} of the weights holds no numbers",
            hint="Make one: noisescope export --format weights",
        ) from error
    values: Float = column.to_numpy(zero_copy_only=False)
    return values


def _matched(
    dataset: PreferenceDataset,
    table: pa.Table,
    weight: Float,
    gamma: Float,
    source: str,
    description: str,
    aside: int = 0,
) -> PairWeights:
    """Weights in the dataset's row order; the `aside` pairs that an audit set aside weigh 0.

    Raises DataError naming pairs without a usable weight.
    """
    ids = table.column("pair_id").cast("string").to_pylist()
    rows = {pair_id: row for row, pair_id in enumerate(ids)}
    if len(rows) < len(ids):
        twice = [name for row, name in enumerate(ids) if rows[name] != row]
        raise DataError(
            f"{len(twice):,} pairs are more than once in {source}: "
            f"{first_five([str(name) for name in twice])}",
            hint="Keep one row for each pair.",
        )
    usable = np.isfinite(weight) & (weight >= 0) & np.isfinite(gamma)
    pair_ids = dataset.table.column("pair_id").to_pylist()
    found = np.array([rows.get(pair_id, -1) for pair_id in pair_ids], np.int64)
    missing = [pair_id for pair_id, row in zip(pair_ids, found, strict=True) if row < 0]
    unweighted = missing if len(missing) > aside else []
    broken = [pair_id for pair_id, row in zip(pair_ids, found, strict=True) if row >= 0]
    broken = [pair_id for pair_id in broken if not usable[rows[pair_id]]]
    faults = [
        f"{len(ids):,} of {len(pair_ids):,} pairs have {what} in {source}: {first_five(ids)}"
        for ids, what in ((unweighted, "no weight"), (broken, "a weight below 0 or not finite"))
        if ids
    ]
    if faults:
        raise DataError(
            "; ".join(faults),
            hint="Make weights for this dataset: noisescope score DATASET, then leave --weights "
            "out; or train without: --weights none.",
        )
    known = found >= 0
    return PairWeights(
        np.where(known, weight[found], 0.0), np.where(known, gamma[found], 0.0), description
    )
