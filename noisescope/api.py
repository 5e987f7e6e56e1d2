"""The Python API: one function a command, each of which does what the command does.

    result = noisescope.audit("pairs.jsonl", model="models/smollm2")   # noisescope score
    result.summary.flip_rate.estimate
    result.scores                       # pyarrow Table, one row a pair
    noisescope.query("SELECT avg(p_flip) FROM scores")
    noisescope.flip("pairs.jsonl", rate=0.2)

`train` is in `auditing.train`. Datasets and models are the workspace's if None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.audited import Audited, refuse_unknown
from noisescope.auditing.reading import read_dataset
from noisescope.errors import UsageError
from noisescope.pairs import PreferenceDataset
from noisescope.progress import Reporter, Silent

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa

    from noisescope.auditing.audit import FineTuned
    from noisescope.auditing.repeat import Repeat
    from noisescope.datasets.flip.copy import Planted
    from noisescope.datasets.in_memory import ArrowStream
    from noisescope.models import Policy
    from noisescope.replicas.gather import EvidenceConfig
    from noisescope.scoring.score import ScoreConfig
    from noisescope.storage.run import Run


def audit(
    dataset: (
        str
        | Path
        | PreferenceDataset
        | ArrowStream
        | datasets.Dataset
        | pd.DataFrame
        | list[dict[str, Any]]
        | None
    ) = None,
    model: str | Path | Policy | None = None,
    *,
    name: str = "pairs",
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    pairs_of: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    evidence: EvidenceConfig | None = None,
    score: ScoreConfig | None = None,
    runs_directory: str | Path = "runs",
    run_directory: str | Path | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> Audited:
    """Audit the pairs of `dataset` with `model`; a finished run of the same plan is reused.

    `dataset` is a path, glob, workspace or Hub name; a table of pandas, polars, Arrow or
    `datasets`, or a list of dicts, whose run is named `name`; or a result of `datasets.load`.
    `model` is a directory, GGUF file or Hub name, or a loaded Policy. None is the workspace's.
    `format`, `columns` (role to column), `pairs_of` (ranked answers: all, best, adjacent), `split`
    and `limit` select what is read; `settings` go to the model (`MODEL_SETTINGS`). `evidence`
    holds the settings of the replicas, `score` rho, k1, k2 and c2.

    If the replicas are no better than chance, `summary.chance` is true and the scores carry no
    information. Raises DataError, UsageError, ModelError, RunError or EvidenceError.
    """
    from noisescope.replicas.gather import EvidenceConfig

    _check_settings(settings)
    evidence, reporter = evidence or EvidenceConfig(), reporter or Silent()
    reading: dict[str, Any] = {"format": format, "columns": columns, "pairs": pairs_of}
    reading |= {"split": split, "limit": limit}
    pairs = None if _is_name(dataset) else read_dataset(dataset, reading, reporter, name)
    options = reading | settings | {"evidence": evidence, "score": score, "name": name}
    options |= {"runs_directory": runs_directory, "run_directory": run_directory}
    before = _typed_before(dataset if pairs is None else pairs, model, evidence, options)
    if before and (run := before.reuse()):
        reporter.note(f"{run.directory} has the result: nothing has changed since")
        return Audited(run)
    from noisescope.auditing.audit import audit as run_audit

    pairs = read_dataset(dataset, reading, reporter, name) if pairs is None else pairs
    evidence.check(pairs.modality)
    run = run_audit(
        pairs,
        _policy(model, pairs, settings),
        evidence=evidence,
        score=score,
        runs_directory=Path(runs_directory),
        run_directory=None if run_directory is None else Path(run_directory),
        command="noisescope.audit",
        reporter=reporter,
    ).run
    if before:
        before.keep(run, pairs.modality)
    return Audited(run)


def _is_name(given: Any) -> bool:
    """Whether a dataset or model is given by path or name, or is the workspace's."""
    return given is None or isinstance(given, str | Path)


def _typed_before(
    dataset: Any,
    model: str | Path | Policy | None,
    evidence: EvidenceConfig,
    options: Mapping[str, Any],
) -> Repeat | None:
    """The same audit as it may have been made before; None if it must be computed."""
    from noisescope.auditing.repeat import Repeat
    from noisescope.models.device import launched
    from noisescope.storage.workspace import default_dataset, find_workspace

    if launched() or evidence.sources or evidence.adapters or not _is_name(model):
        return None
    if not isinstance(dataset, PreferenceDataset):
        dataset = default_dataset(None if dataset is None else str(dataset), find_workspace())
    named = None if model is None else str(model)
    return Repeat.of(dataset, named, options, Path(str(options["runs_directory"])))


def fine_tune(
    dataset: Any = None,
    model: str | Path | Policy | None = None,
    *,
    evidence: EvidenceConfig | None = None,
    reading: Mapping[str, Any] | None = None,
    runs_directory: str | Path = "runs",
    run_directory: str | Path | None = None,
    reporter: Reporter | None = None,
    **settings: Any,
) -> FineTuned:
    """Make the replicas of an audit and their margins, without scores; arguments as in `audit`."""
    from noisescope.auditing.audit import fine_tune as make_replicas
    from noisescope.replicas.gather import EvidenceConfig

    evidence, reporter = evidence or EvidenceConfig(), reporter or Silent()
    pairs = read_dataset(dataset, reading or {}, reporter)
    evidence.check(pairs.modality)
    return make_replicas(
        pairs,
        _policy(model, pairs, settings),
        evidence=evidence,
        runs_directory=Path(runs_directory),
        run_directory=None if run_directory is None else Path(run_directory),
        command="noisescope.fine_tune",
        reporter=reporter,
    )


def flip(
    dataset: str | Path | None = None,
    *,
    rate: float = 0.2,
    kind: str = "uniform",
    seed: int = 0,
    output: str | Path | None = None,
    format: str | None = None,
    columns: str | Mapping[str, str] | None = None,
    pairs_of: str | None = None,
    split: str | None = None,
    run: str | None = None,
    runs_directory: str | Path = "runs",
    reporter: Reporter | None = None,
) -> Planted:
    """Write a copy of `dataset` with a known set of labels flipped, in the same format.

    `output` None is flipped/NAME-KIND-RATE-sSEED; `run` has the margins that kinds hard, easy and
    response need if the dataset has no scores.
    Raises UsageError, DataError or RunError; the source is never written to.
    """
    from noisescope.datasets import open_source
    from noisescope.datasets.flip.copy import plant
    from noisescope.datasets.flip.plan import FlipPlan, margin_gaps
    from noisescope.storage.files import slug
    from noisescope.storage.run import find_run
    from noisescope.storage.workspace import default_dataset, find_workspace

    plan, reporter, workspace = FlipPlan(rate, kind, seed), reporter or Silent(), find_workspace()
    named = default_dataset(None if dataset is None else str(dataset), workspace)
    source = open_source(named, split=split, workspace=workspace)
    reporter.note(source.description)
    default = Path("flipped") / f"{slug(source.name)}-{kind}-{rate:g}-s{seed}"
    gaps = margin_gaps(find_run(run, Path(runs_directory))) if run is not None else None
    return plant(
        source,
        plan,
        default if output is None else Path(output),
        format=format,
        columns=columns,
        pairs=pairs_of,
        gaps=gaps,
    )


def validate(
    run: str | Path | Run | None = None,
    *,
    rates: Sequence[float] = (0.2,),
    kind: str | Sequence[str] = "uniform",
    seeds: int = 3,
    truth: str | Path | None = None,
    gold: str | Path | None = None,
    runs_directory: str | Path = "runs",
) -> dict[str, Any]:
    """Plant label errors in a finished run, find them, and compare the claims with the truth.

    `kind` "all" is every kind that the dataset can have. `gold` and `truth` are files of pair_id,
    mislabelled: labels are corrected by `gold` before planting; with `truth` nothing is planted.
    Raises UsageError, DataError or RunError.
    """
    from noisescope.auditing.validation import Planned, validate_truth
    from noisescope.auditing.validation import validate as plant_and_find
    from noisescope.storage.run import Run, find_run

    named = None if run is None else str(run)
    found = run if isinstance(run, Run) else find_run(named, Path(runs_directory))
    if truth is not None:
        return validate_truth(found, Path(truth))
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    right = None if gold is None else Path(gold)
    return plant_and_find(found, Planned(tuple(rates), kinds, seeds), gold=right)


def query(
    sql: str, run: str | Path | Run | None = None, *, runs_directory: str | Path = "runs"
) -> pa.Table:
    """Run one SELECT over a finished run. Raises UsageError and RunError."""
    from noisescope.storage.run import Run, find_run
    from noisescope.storage.sql import query as run_query

    if isinstance(run, Run):
        return run_query(run, sql)
    return run_query(find_run(None if run is None else str(run), Path(runs_directory)), sql)


#: Settings of a model, of all modalities.
MODEL_SETTINGS = (
    "chat_template",
    "device",
    "device_map",
    "draws",
    "dtype",
    "groups",
    "image_size",
    "max_length",
    "quantize",
)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument that `audit` does not have, with its place or a near one."""
    from dataclasses import fields
    from inspect import signature

    from noisescope.replicas.gather import EvidenceConfig
    from noisescope.scoring.score import ScoreConfig

    own = [name for name in signature(audit).parameters if name != "settings"]
    elsewhere = {
        field.name: f"Pass {argument}=noisescope.{kind.__name__}({field.name}=...)."
        for argument, kind in (("evidence", EvidenceConfig), ("score", ScoreConfig))
        for field in fields(kind)
    }
    refuse_unknown("audit", settings, [*own, *MODEL_SETTINGS], elsewhere)


def _policy(
    model: str | Path | Policy | None, pairs: PreferenceDataset, settings: Mapping[str, Any]
) -> Policy:
    """Load a model by name, or the workspace's; return a loaded Policy as it is."""
    from noisescope.models.load import load_policy, packaged_model
    from noisescope.storage.workspace import default_model, find_workspace

    if model is None or isinstance(model, str | Path):
        named = None if model is None else str(model)
        known = default_model(named, pairs.modality, find_workspace())
        return load_policy(known or packaged_model(pairs.modality), pairs, **settings)
    if settings:
        raise UsageError(
            f"{', '.join(settings)}: the model is already loaded",
            hint="Pass its name or directory instead, or load it with these settings.",
        )
    return model
