"""Generate with both models, let judges compare the outputs, and write the results.

    done = run_evaluation(policy, against, prompts, judges, settings, reporter=Terminal())
    done.results[0].won.rate

Outputs and verdicts are stored as they are made; everything else is computed from them again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import DataError, UsageError
from noisescope.evaluate.comparison import FAILED, Comparison, Judge, Output, Verdict
from noisescope.evaluate.directory import (
    MANIFEST_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    EvaluationDirectory,
    EvaluationPlan,
    open_directory,
)
from noisescope.evaluate.generate import (
    GenerationSettings,
    generate_missing,
    open_generator,
    read_outputs,
    read_parts,
    write_part,
)
from noisescope.evaluate.models import ModelSpec
from noisescope.evaluate.prompts import Prompts
from noisescope.evaluate.results import JudgeResult, summarise_verdicts
from noisescope.pairs import digest
from noisescope.storage.files import write_atomic
from noisescope.storage.redact import masked

if TYPE_CHECKING:
    from noisescope.pairs import PreferenceDataset
    from noisescope.progress import Progress, Reporter

#: Comparisons whose verdicts are stored together; a killed run loses at most these.
CHUNK = 16


@final
@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its directory, comparisons, and each judge's verdicts and result."""

    directory: Path
    plan: EvaluationPlan
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[tuple[Verdict, ...], ...]
    results: tuple[JudgeResult, ...]
    labelled: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON object of `--json` and of the manifest."""
        content = self.plan.to_json()
        content["judges"] = [result.to_json() for result in self.results]
        return content | {"labelled": self.labelled, "same_output": self.same_output}

    @property
    def same_output(self) -> int:
        """Number of prompts on which both models made the same output."""
        return sum(c.policy == c.against for c in self.comparisons)


def run_evaluation(
    policy: ModelSpec,
    against: ModelSpec,
    prompts: Prompts,
    judges: Sequence[Judge],
    settings: GenerationSettings,
    *,
    reporter: Reporter,
    directory: Path | None = None,
    device: str = "auto",
    labelled: PreferenceDataset | None = None,
    command: str = "",
) -> Evaluation:
    """Evaluate, continuing what `directory` already contains.

    `labelled` pairs are ranked too; without judges only they are, and nothing is generated.
    Raises UsageError if models and judges do not fit together, RunError if the directory belongs
    to a different evaluation, ModelError if a model does not load.
    """
    check_models(policy, against, judges)
    plan = EvaluationPlan(policy, against, prompts, settings)
    out = open_directory(plan, directory or plan.default_directory)
    for judge in judges:
        if cost := judge.cost(len(prompts.kept)):
            reporter.note(f"{judge.card.name}: {cost}")
    is_needed = bool(judges) or labelled is None
    comparisons = generate_outputs(plan, out, device, reporter) if is_needed else ()
    verdicts = tuple(_judged(judge, comparisons, out, reporter) for judge in judges)
    results = tuple(
        summarise_verdicts(judge.card, found) for judge, found in zip(judges, verdicts, strict=True)
    )
    ranked = None if labelled is None else _ranked(plan, labelled, out, device, reporter)
    done = Evaluation(out.path, plan, comparisons, verdicts, results, ranked)
    _write(done, out, masked(command))
    return done


def check_models(policy: ModelSpec, against: ModelSpec, judges: Sequence[Judge]) -> None:
    """Raise UsageError if the models are equal or of different kinds, or a judge does not fit."""
    if policy.modality != against.modality:
        raise UsageError(
            f"{policy.name} makes {policy.modality}s, {against.name} makes {against.modality}s",
            hint="Compare two text models, or two image pipelines.",
        )
    if policy.fingerprint == against.fingerprint:
        raise UsageError(
            f"{policy.name} and {against.name} are the same model",
            hint="Name another opponent with --against.",
        )
    wrong = [judge.card.name for judge in judges if judge.card.modality != policy.modality]
    if wrong:
        raise UsageError(
            f"--judge {', '.join(wrong)} does not judge {policy.modality}s",
            hint="`noisescope evaluate --help` lists the judges of each kind.",
        )
    names = [judge.card.name for judge in judges]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"--judge {', '.join(twice)} is given twice", hint="Give each judge once.")


def generate_outputs(
    plan: EvaluationPlan, out: EvaluationDirectory, device: str, reporter: Reporter
) -> tuple[Comparison, ...]:
    """Generate the missing outputs of both models, one model in memory at a time."""
    outputs: list[dict[str, Output]] = []
    for side, spec in (("policy", plan.policy), ("against", plan.against)):
        generator = open_generator(spec, plan.settings, device)
        where, name = out.generations(side), spec.name

        def estimated(seconds: float, left: int, name: str = name) -> None:
            kind = "responses" if plan.policy.modality == "text" else "pictures"
            reporter.note(f"{left:,} {kind} by {name}: at most {_duration(seconds)}")

        with reporter.stage(f"generating with {spec.short}") as progress:
            kept, note = plan.prompts.kept, reporter.note
            generate_missing(generator, kept, where, progress, estimated, note)
        outputs.append(read_outputs(where, generator.fingerprint))
        del generator  # and its model, before the next is loaded
    one, other = outputs
    found = tuple(
        Comparison(prompt, one[prompt.key], other[prompt.key])
        for prompt in plan.prompts.kept
        if prompt.key in one and prompt.key in other
    )
    if not found:
        raise DataError(
            f"none of the {len(plan.prompts.kept):,} prompts can be read by both models",
            hint="Choose prompts of user turns alone with --prompts.",
        )
    return found


def _ranked(
    plan: EvaluationPlan,
    pairs: PreferenceDataset,
    out: EvaluationDirectory,
    device: str,
    reporter: Reporter,
) -> dict[str, Any]:
    """Compute accuracies on labelled pairs; they are stored under the pairs' fingerprint."""
    from noisescope.evaluate.labelled import labelled_accuracy

    path = out.path / f"labelled-{digest('labelled', pairs.fingerprint)[:8]}.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return kept
    found = labelled_accuracy(plan.policy, plan.against, pairs, device=device, reporter=reporter)
    out.write_json(path.name, found.to_json())
    return found.to_json()


def _duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours."""
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _judged(
    judge: Judge, comparisons: Sequence[Comparison], out: EvaluationDirectory, reporter: Reporter
) -> tuple[Verdict, ...]:
    with reporter.stage(f"judging by {judge.card.name}") as progress:
        return judge_missing(judge, comparisons, out.scores(judge.card), progress)


def judge_missing(
    judge: Judge, comparisons: Sequence[Comparison], directory: Path, progress: Progress
) -> tuple[Verdict, ...]:
    """Judge CHUNK comparisons at a time; stored verdicts are kept, failed requests repeated."""
    mark = judge.card.fingerprint
    known = {row["key"]: _verdict(row) for row in read_parts(directory, mark)}
    known = {key: found for key, found in known.items() if FAILED not in found.answers}
    todo = [c for c in comparisons if c.prompt.key not in known]
    done = 0
    for start in range(0, len(comparisons), CHUNK):
        part = comparisons[start : start + CHUNK]
        new = [c for c in part if c.prompt.key not in known]
        if not new:
            continue
        found = judge.judge(new)
        known |= {comparison.prompt.key: v for comparison, v in zip(new, found, strict=True)}
        name = f"part-{digest(*(c.prompt.key for c in part))}.parquet"
        write_part(directory / name, _verdicts_table(part, known), mark)
        done += len(new)
        progress(float(done), float(len(todo)), None)
    return tuple(known[c.prompt.key] for c in comparisons)


def _verdict(row: dict[str, Any]) -> Verdict:
    answers = tuple(row["told"])
    return Verdict(row["outcome"], row["policy"], row["against"], answers, row["retries"])


def _verdicts_table(comparisons: Sequence[Comparison], verdicts: dict[str, Verdict]) -> Any:
    import pyarrow as pa

    found = [verdicts[c.prompt.key] for c in comparisons]
    return pa.table(
        {
            "key": [c.prompt.key for c in comparisons],
            "outcome": pa.array([v.outcome for v in found], pa.float64()),
            "policy": pa.array([v.policy for v in found], pa.float64()),
            "against": pa.array([v.against for v in found], pa.float64()),
            "told": pa.array([list(v.answers) for v in found], pa.list_(pa.string())),
            "retries": pa.array([v.retries for v in found], pa.int64()),
        }
    )


def results_table(done: Evaluation) -> Any:
    """One row per prompt: key, prompt, both outputs, `<judge>_outcome`, `_policy`, `_against`."""
    import pyarrow as pa

    kind = pa.string() if done.plan.policy.modality == "text" else pa.binary()
    columns: dict[str, Any] = {
        "key": [c.prompt.key for c in done.comparisons],
        "prompt": [c.prompt.text for c in done.comparisons],
        "policy": pa.array([c.policy for c in done.comparisons], kind),
        "against": pa.array([c.against for c in done.comparisons], kind),
    }
    for result, verdicts in zip(done.results, done.verdicts, strict=True):
        name = result.card.name
        columns[f"{name}_outcome"] = pa.array([v.outcome for v in verdicts], pa.float64())
        if result.card.is_pairwise:
            answers = [list(v.answers) for v in verdicts]
            columns[f"{name}_told"] = pa.array(answers, pa.list_(pa.string()))
            continue
        columns[f"{name}_policy"] = pa.array([v.policy for v in verdicts], pa.float64())
        columns[f"{name}_against"] = pa.array([v.against for v in verdicts], pa.float64())
    return pa.table(columns)


def _write(done: Evaluation, out: EvaluationDirectory, command: str) -> None:
    """Write results, report and manifest, in this order."""
    import pyarrow.parquet as pq

    from noisescope.evaluate.page import page

    table = results_table(done)
    path = out.path / RESULTS_FILE
    write_atomic(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
    write_atomic(out.path / REPORT_FILE, page(done, command))
    out.write_json(MANIFEST_FILE, done.to_json() | {"command": command})
