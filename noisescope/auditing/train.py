"""Train a policy on a dataset weighted by its audit: what `noisescope train` does.

    done = train("hh-rlhf", steps=200)
    done.manifest()["result"]["last"]["accuracy"]

Without an objective it is forward-dpo on the dataset's own audit, which is made first if it is
missing, or plain dpo where that audit distinguishes labels by their responses alone, which the
policy learns itself, or cannot know which are wrong (scoring/trust.py); labels are then those that
people corrected. A weights file is trained with the objective that it was made for.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from noisescope.auditing.reading import read_dataset
from noisescope.errors import UsageError
from noisescope.models.device import own_device
from noisescope.models.load import load_policy
from noisescope.pairs import PreferenceDataset
from noisescope.progress import Reporter, Silent
from noisescope.scoring.reviews import read_latest
from noisescope.storage.printable import plural
from noisescope.storage.reviews import DROP
from noisescope.storage.workspace import default_model, find_workspace
from noisescope.training.policy.distributed import precision
from noisescope.training.policy.pair_weights import (
    PairWeights,
    WeightRule,
    find_audit,
    run_weights,
)
from noisescope.training.policy.run import check_settings, fine_tune
from noisescope.training.policy.settings import (
    ADAPTIVE,
    TrainSettings,
    find_objective,
    objective_for,
    settled,
)
from noisescope.training.policy.weights_file import PROBABILITIES, file_weights, scheme_of

if TYPE_CHECKING:
    from noisescope.models import Policy
    from noisescope.models.diffusion import DiffusionPolicy
    from noisescope.storage.run import Run
    from noisescope.training.policy.output import Trained


def train(
    dataset: Any = None,
    model: str | None = None,
    *,
    objective: str | None = None,
    preset: str | None = None,
    weights: str | Path | None = None,
    weighting: str | None = None,
    rho: float | None = None,
    parameters: Mapping[str, float] | None = None,
    output: Path | None = None,
    report_to: str | None = None,
    reading: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    chat_template: str | None = None,
    image_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    runs_directory: Path = Path("runs"),
    reporter: Reporter | None = None,
    command: str = "noisescope.train",
    **settings: Any,
) -> Trained:
    """Fine-tune `model` on the pairs of `dataset` and write the result to `output`.

    `dataset` and `model` are those of the workspace if None; `reading` holds format, columns,
    pairs, split and limit. `objective` None: the paper's adaptive-dpo with any of its settings,
    else what a file of `weights` is for, or forward-dpo or dpo, by the audit. `weights` is a run, a
    file (pair_id and W, gamma, p_prior or p_wrong), "none", or None: the dataset's audit for
    objectives in ADAPTIVE, no weights for the others. `weighting` (p_wrong, p_flip, u, reviews,
    prior, soft, margin) turns a run's scores into weights.
    `settings` are fields of `TrainSettings`.

    Raises UsageError, DataError, ModelError, RunError or EvidenceError. A training that is
    interrupted continues from its last checkpoint when it is called again.
    """
    reporter = reporter or Silent()
    named = objective or default_objective(preset, rho, settings, weights, weighting)
    find_objective(named)
    if objective is None and weights is not None and Path(weights).is_file():
        reporter.note(f"training {named}, which {weights} is for; --objective names another")
    pairs = read_dataset(dataset, reading or {}, reporter)
    given = settings | {"objective": named, "named": preset, "parameters": parameters}
    given |= {"rho": rho}
    chosen = settled(pairs.modality, **given)
    check_settings(chosen, report_to)
    _refuse_unused(weights, chosen, weighting, given)
    number, mixed = precision(
        dtype,
        full=chosen.full,
        device=device,
        launched=os.environ.get("ACCELERATE_MIXED_PRECISION"),
    )
    policy = load_policy(
        default_model(model, pairs.modality, find_workspace()),
        pairs,
        max_length=max_length,
        chat_template=chat_template,
        device=own_device(device),
        dtype=number,
        **({} if image_size is None else {"image_size": image_size}),
    )
    reporter.note(f"training {policy.identity.id}")
    if pairs.modality == "image":
        pipeline = cast("DiffusionPolicy", policy).pipeline
        chosen = settled(pairs.modality, is_xl=pipeline.is_xl, **given)
        if not (chosen.full or pipeline.family.loads_lora):
            raise UsageError(
                f"diffusers loads no LoRA weights into a {pipeline.family.pipeline}",
                hint="Train the whole denoiser with --full.",
            )
    rule = WeightRule(weighting or chosen.weighting, chosen.k1, chosen.k2, chosen.c2, rho)
    found = _weights(weights, rule, chosen, pairs, policy, runs_directory, reporter, command)
    automatic = objective is None and weights is None and named == DEFAULT
    if automatic and found is not None and (found.even or found.doubt):
        chosen = replace(chosen, objective="dpo")
        found = _supported(found, pairs, runs_directory, reporter)
    if found is not None and found.even:
        raise UsageError(
            f"{found.description}: all pairs have the same weight to one in a hundred, so "
            f"{chosen.objective} would be plain dpo",
            hint="Use --objective soft-dpo (labels by p_wrong), or train without weights: "
            "--objective dpo --weights none.",
        )
    return fine_tune(
        pairs,
        policy,
        chosen,
        weights=found,
        output=output,
        reporter=reporter,
        report_to=report_to,
        mixed_precision=mixed,
        command=command,
    )


#: Settings of the paper's own objective.
PAPER = ("online", "online_replicas", "k1", "k2", "c2")


#: The objective of a training without any of them.
DEFAULT = "forward-dpo"


def default_objective(
    preset: str | None,
    rho: float | None,
    settings: Mapping[str, Any],
    weights: str | Path | None = None,
    weighting: str | None = None,
) -> str:
    """The objective of a training that names none: the paper's by its settings, else what the
    weights or their `weighting` are for. Raises DataError for a weights file that cannot be read.
    """
    if preset or rho is not None or any(settings.get(name) is not None for name in PAPER):
        return "adaptive-dpo"
    if weights == "none":
        return "dpo"
    if weighting:
        return objective_for(weighting)
    if weights is not None and Path(weights).is_file():
        return objective_for(scheme_of(Path(weights)))
    return DEFAULT


def _supported(
    found: PairWeights, pairs: PreferenceDataset, runs_directory: Path, reporter: Reporter
) -> PairWeights | None:
    """The weights of plain dpo where the audit does not support forward-dpo, and a note of why:
    people's decisions, or None.
    """
    run = find_audit(pairs, runs_directory)
    corrected = run_weights(run, pairs, WeightRule("reviews")) if run and found.judged else None
    if corrected is not None and not corrected.even:
        reporter.note(
            f"training plain dpo on the labels as reviewed ({plural(found.judged, 'pair')}), "
            "without the rest of this audit; --objective forward-dpo uses it"
        )
        return corrected
    if found.even:
        reporter.note(
            "this audit has no rates that differ (by annotator, say), no reviews and no other "
            "evidence: it knows no more than the policy learns from the pairs"
        )
    reporter.note("training plain dpo, which does not use this audit; --objective soft-dpo uses it")
    return None


#: Settings that change how a run's scores become weights.
RESTATING = ("weighting", "rho", "k1", "k2", "c2")


def _refuse_unused(
    weights: str | Path | None,
    settings: TrainSettings,
    weighting: str | None,
    given: Mapping[str, Any],
) -> None:
    """Raise UsageError for settings about a run's scores if no run is used."""
    settings.check_scheme(weighting or "")
    values = dict(given) | {"weighting": weighting}
    flags = [f"--{name}" for name in RESTATING if values.get(name) is not None]
    if settings.online is not None:
        unused, why = [flag for flag in flags if flag == "--weighting"], "--online makes its own"
    elif weights == "none" or (weights is None and settings.objective not in ADAPTIVE):
        unused, why = flags, f"--objective {settings.objective} trains without weights here"
    elif weights is not None and Path(weights).is_file():
        unused, why = flags, f"{weights} contains finished weights"
    elif (weighting or settings.weighting) != "u":
        unused = [flag for flag in flags if flag != "--weighting"]
        why = f"--weighting {weighting or settings.weighting} has no such constant"
    else:
        return
    if unused:
        raise UsageError(
            f"{', '.join(unused)} would change nothing: {why}",
            hint="Use an audit's weights with --weights RUN (made by `noisescope score`), or "
            f"remove {', '.join(unused)}.",
        )


def _weights(
    given: str | Path | None,
    rule: WeightRule,
    settings: TrainSettings,
    pairs: PreferenceDataset,
    policy: Policy,
    runs_directory: Path,
    reporter: Reporter,
    command: str,
) -> PairWeights | None:
    """W and Gamma of a file, of a run, or of the dataset's audit; None for no weights."""
    from noisescope.storage.run import find_run

    adaptive = settings.objective in ADAPTIVE and settings.online is None
    if adaptive:
        settings.check_scheme(rule.scheme if given is None else "")
    if given == "none" or (given is None and not adaptive):
        if given is None and settings.online is None:
            note_unused_reviews(pairs, settings.objective, runs_directory, reporter)
        return None
    if given is not None and Path(given).is_file():
        scheme = rule.scheme if rule.scheme in PROBABILITIES else ""
        found = file_weights(Path(given), pairs, scheme)
    elif given is not None and Path(given).suffix in (".parquet", ".csv", ".jsonl", ".json"):
        raise UsageError(
            f"--weights {given}: no such file",
            hint="Make one: noisescope export --format weights --output FILE",
        )
    elif given is not None:
        found = run_weights(find_run(str(given), runs_directory), pairs, rule)
    else:
        run = _audit_of(pairs, policy, settings, runs_directory, reporter, command)
        found = run_weights(run, pairs, rule)
    reporter.note(f"weights: {found.description}")
    if found.doubt:
        reporter.note(found.doubt)
    return found


def note_unused_reviews(
    pairs: PreferenceDataset, objective: str, runs_directory: Path, reporter: Reporter
) -> None:
    """Note that a training without weights uses no label that people found wrong or drop."""
    run = find_audit(pairs, runs_directory)
    decided = [one for one in read_latest(run) if one.verdict in ("wrong", DROP)] if run else []
    if run and decided:
        reporter.note(
            f"people decided about {plural(len(decided), 'pair')}, and --objective {objective} "
            f"trains on the labels as they were: --weights {shlex.quote(str(run.directory))} "
            "--weighting reviews takes the decisions"
        )


def _audit_of(
    pairs: PreferenceDataset,
    policy: Policy,
    settings: TrainSettings,
    runs_directory: Path,
    reporter: Reporter,
    command: str,
) -> Run:
    """The dataset's latest audit, made by one process if there is none."""
    from accelerate import PartialState

    with PartialState(cpu=policy.device.type == "cpu").main_process_first():
        run = find_audit(pairs, runs_directory)
        if run is not None:
            return run
        reporter.note(f"{settings.objective} needs an audit of {pairs.name}, which is made first")
        from noisescope.auditing.audit import audit
        from noisescope.scoring.score import ScoreConfig

        return audit(
            pairs,
            policy,
            score=ScoreConfig(rho=settings.rho),
            runs_directory=runs_directory,
            command=command,
            reporter=reporter,
        ).run
