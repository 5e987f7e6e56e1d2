"""Generate with both models, let judges compare, write what they found.

    done = evaluate(policy, against, prompts, judges, settings, reporter=Terminal())
    done.comparisons[0].won.rate

Outputs and verdicts are stored as they come; everything computed from them is made anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import UsageError
from noisescope.evaluate.comparison import Comparison, compare
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
    fill,
    open_generator,
    read,
    read_parts,
    write_part,
)
from noisescope.evaluate.models import Contender
from noisescope.evaluate.prompts import Prompts
from noisescope.evaluate.results import FAILED, Duel, Judge, Output, Verdict
from noisescope.pairs import digest
from noisescope.storage.files import write_atomic
from noisescope.storage.redact import masked

if TYPE_CHECKING:
    from noisescope.pairs import PreferenceDataset
    from noisescope.progress import Progress, Reporter

#: Duels whose verdicts are stored together: what a kill can cost.
DUELS = 16


@final
@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: where it lies, its duels, and each judge's verdicts and result."""

    directory: Path
    plan: EvaluationPlan
    duels: tuple[Duel, ...]
    verdicts: tuple[tuple[Verdict, ...], ...]
    comparisons: tuple[Comparison, ...]
    labelled: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON object of `--json` and of the manifest."""
        told = self.plan.to_json()
        told["judges"] = [comparison.to_json() for comparison in self.comparisons]
        return told | {"labelled": self.labelled, "same_output": self.same_output}

    @property
    def same_output(self) -> int:
        """Prompts on which both models made the very same output."""
        return sum(duel.policy == duel.against for duel in self.duels)


def evaluate(
    policy: Contender,
    against: Contender,
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
    """Everything, resuming what `directory` already holds; `labelled` pairs are ranked as well
    (alone, and nothing is generated, where there are no judges).

    Raises UsageError where models and judges do not go together, RunError for a directory of
    another evaluation, ModelError for a model that does not load.
    """
    check(policy, against, judges)
    plan = EvaluationPlan(policy, against, prompts, settings)
    place = open_directory(plan, directory or plan.default_directory)
    for judge in judges:
        if cost := judge.cost(len(prompts.kept)):
            reporter.note(f"{judge.card.name}: {cost}")
    is_needed = bool(judges) or labelled is None
    duels = generate(plan, place, device, reporter) if is_needed else ()
    verdicts = tuple(_judged(judge, duels, place, reporter) for judge in judges)
    comparisons = tuple(
        compare(judge.card, found) for judge, found in zip(judges, verdicts, strict=True)
    )
    ranked = None if labelled is None else _ranked(plan, labelled, place, device, reporter)
    done = Evaluation(place.path, plan, duels, verdicts, comparisons, ranked)
    _write(done, place, masked(command))
    return done


def check(policy: Contender, against: Contender, judges: Sequence[Judge]) -> None:
    """Raise UsageError for models of two kinds, one model twice, or judges of another kind."""
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
        raise UsageError(f"--judge {', '.join(twice)} is given twice", hint="Leave one out.")


def generate(
    plan: EvaluationPlan, place: EvaluationDirectory, device: str, reporter: Reporter
) -> tuple[Duel, ...]:
    """Both models' outputs, one model in memory at a time; only what is missing is made."""
    outputs: list[dict[str, Output]] = []
    for side, contender in (("policy", plan.policy), ("against", plan.against)):
        generator = open_generator(contender, plan.settings, device)
        where, name = place.generations(side), contender.name

        def estimated(seconds: float, left: int, name: str = name) -> None:
            kind = "responses" if plan.policy.modality == "text" else "pictures"
            reporter.note(f"{left:,} {kind} by {name}: at most {told(seconds)}")

        with reporter.stage(f"generating with {contender.short}") as progress:
            fill(generator, plan.prompts.kept, where, progress, estimated)
        outputs.append(read(where, generator.fingerprint))
        del generator  # and its model, before the next is loaded
    return tuple(
        Duel(prompt, outputs[0][prompt.key], outputs[1][prompt.key]) for prompt in plan.prompts.kept
    )


def _ranked(
    plan: EvaluationPlan,
    pairs: PreferenceDataset,
    place: EvaluationDirectory,
    device: str,
    reporter: Reporter,
) -> dict[str, Any]:
    """Accuracies on labelled pairs, kept in the directory by the pairs' fingerprint."""
    from noisescope.evaluate.labelled import labelled_accuracy

    path = place.path / f"labelled-{digest('labelled', pairs.fingerprint)[:8]}.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return kept
    found = labelled_accuracy(plan.policy, plan.against, pairs, device=device, reporter=reporter)
    place.write_json(path.name, found.to_json())
    return found.to_json()


def told(seconds: float) -> str:
    """Seconds or minutes or hours, as one would say it."""
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _judged(
    judge: Judge, duels: Sequence[Duel], place: EvaluationDirectory, reporter: Reporter
) -> tuple[Verdict, ...]:
    with reporter.stage(f"judging by {judge.card.name}") as progress:
        return judge_duels(judge, duels, place.scores(judge.card), progress)


def judge_duels(
    judge: Judge, duels: Sequence[Duel], directory: Path, progress: Progress
) -> tuple[Verdict, ...]:
    """A verdict a duel, DUELS at a time; stored ones are kept, failed requests asked again."""
    mark = judge.card.fingerprint
    known = {row["key"]: _verdict(row) for row in read_parts(directory, mark)}
    known = {key: found for key, found in known.items() if FAILED not in found.told}
    todo = [duel for duel in duels if duel.prompt.key not in known]
    done = 0
    for start in range(0, len(duels), DUELS):
        part = duels[start : start + DUELS]
        new = [duel for duel in part if duel.prompt.key not in known]
        if not new:
            continue
        found = judge.judge(new)
        known |= {duel.prompt.key: v for duel, v in zip(new, found, strict=True)}
        name = f"part-{digest(*(duel.prompt.key for duel in part))}.parquet"
        write_part(directory / name, _verdicts_table(part, known), mark)
        done += len(new)
        progress(float(done), float(len(todo)), None)
    return tuple(known[duel.prompt.key] for duel in duels)


def _verdict(row: dict[str, Any]) -> Verdict:
    told = tuple(row["told"])
    return Verdict(row["outcome"], row["policy"], row["against"], told, row["retries"])


def _verdicts_table(duels: Sequence[Duel], verdicts: dict[str, Verdict]) -> Any:
    import pyarrow as pa

    found = [verdicts[duel.prompt.key] for duel in duels]
    return pa.table(
        {
            "key": [duel.prompt.key for duel in duels],
            "outcome": pa.array([v.outcome for v in found], pa.float64()),
            "policy": pa.array([v.policy for v in found], pa.float64()),
            "against": pa.array([v.against for v in found], pa.float64()),
            "told": pa.array([list(v.told) for v in found], pa.list_(pa.string())),
            "retries": pa.array([v.retries for v in found], pa.int64()),
        }
    )


def results_table(done: Evaluation) -> Any:
    """One row a prompt: key, prompt, both outputs, and `<judge>_outcome`, `_policy`, `_against`."""
    import pyarrow as pa

    kind = pa.string() if done.plan.policy.modality == "text" else pa.binary()
    columns: dict[str, Any] = {
        "key": [duel.prompt.key for duel in done.duels],
        "prompt": [duel.prompt.text for duel in done.duels],
        "policy": pa.array([duel.policy for duel in done.duels], kind),
        "against": pa.array([duel.against for duel in done.duels], kind),
    }
    for comparison, verdicts in zip(done.comparisons, done.verdicts, strict=True):
        name = comparison.card.name
        columns[f"{name}_outcome"] = pa.array([v.outcome for v in verdicts], pa.float64())
        if comparison.card.is_pairwise:
            told = [list(v.told) for v in verdicts]
            columns[f"{name}_told"] = pa.array(told, pa.list_(pa.string()))
            continue
        columns[f"{name}_policy"] = pa.array([v.policy for v in verdicts], pa.float64())
        columns[f"{name}_against"] = pa.array([v.against for v in verdicts], pa.float64())
    return pa.table(columns)


def _write(done: Evaluation, place: EvaluationDirectory, command: str) -> None:
    """Results, report, manifest, in this order."""
    import pyarrow.parquet as pq

    from noisescope.evaluate.page import page

    table = results_table(done)
    path = place.path / RESULTS_FILE
    write_atomic(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
    write_atomic(place.path / REPORT_FILE, page(done, command))
    place.write_json(MANIFEST_FILE, done.to_json() | {"command": command})
