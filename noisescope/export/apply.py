"""Apply people's decisions about a run's pairs to its dataset, and record them as reviews.

    decisions = read_decisions(Path("decisions.csv"))
    scores = run_of(decisions, None, Path("runs"))
    done = apply_decisions(scores, source, decisions, Path("corrected"), reviewer="ann")

The report page writes such files: `pair_id`, `decision` (keep, flip, drop, unsure), `note`,
`reviewer` and `dataset`, the fingerprint of the dataset that the page showed. The copy differs from
the source in the rows of flipped and dropped pairs alone. The reviews have the purpose `decide`:
whoever decides picks the pairs and sees their labels, so nothing is estimated from them.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.datasets.readers import check_suffix, read_file
from noisescope.errors import DataError, RunError, UsageError, first_five
from noisescope.export.clean import plan_copy
from noisescope.export.removal import DROP, FLIP, KEEP, Actions
from noisescope.pairs import digest, keys_of
from noisescope.scoring.reviews import read_latest, read_population
from noisescope.scoring.run_scores import RunScores, find_run_scores
from noisescope.storage import reviews
from noisescope.storage.files import slug
from noisescope.storage.output import MARK, claim, write_directory
from noisescope.storage.printable import plural
from noisescope.storage.reviews import Answer, Draw, Journal, read_reviews, side_key
from noisescope.storage.run import finished_runs

if TYPE_CHECKING:
    from noisescope.datasets import Source

#: Decision -> what happens to the pair.
DECISIONS = {"keep": KEEP, "flip": FLIP, "drop": DROP, "unsure": KEEP}
#: Decision -> answer of a review that shows the label's side first.
_ANSWERS: dict[str, Any] = {
    "keep": "first",
    "flip": "second",
    "drop": reviews.DROP,
    "unsure": "skip",
}
_COLUMNS = "It needs the columns pair_id and decision (keep, flip, drop or unsure)."


@final
@dataclass(frozen=True)
class Decision:
    """What one person decided about a pair, and where the file states it."""

    pair_id: str
    decision: str
    reviewer: str
    note: str
    where: str


@final
@dataclass(frozen=True)
class Decisions:
    """The content of a file; `dataset` is the fingerprint that it states, empty without one."""

    path: Path
    rows: tuple[Decision, ...]
    dataset: str

    @property
    def digest(self) -> str:
        """Identity of what is decided, whoever decided it and in whichever order."""
        return digest("decisions", *sorted({f"{row.pair_id} {row.decision}" for row in self.rows}))

    @property
    def by_pair(self) -> dict[str, str]:
        """The decision about each pair."""
        return {row.pair_id: row.decision for row in self.rows}

    def counts(self) -> dict[str, int]:
        """How many pairs have each decision."""
        found = Counter(self.by_pair.values())
        return {name: found[name] for name in DECISIONS}


@final
@dataclass(frozen=True)
class Applied:
    """What `apply_decisions` did: pairs by decision, and reviews recorded and known before.

    `others` are pairs that reviewers corrected elsewhere and the file does not mention, `copies`
    pairs with the content of a changed one that it does not mention either.
    """

    counts: Mapping[str, int]
    recorded: int
    known: int
    others: int
    copies: int


def read_decisions(path: Path) -> Decisions:
    """Read a file of decisions; rows without one are skipped.

    Raises DataError for a file without decisions, of several datasets, with an unknown word, or
    with two different decisions about a pair.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", hint="Name the file that the page downloaded.")
    check_suffix(path)
    rows: list[Decision] = []
    datasets: dict[str, None] = {}
    faults: list[str] = []
    for row in read_file(path, path.name):
        where = f"row {row.number + 1}"  # a user's rows begin at 1
        values = {} if row.values is None else row.values
        if row.values is None or not {"pair_id", "decision"} <= values.keys():
            why = row.trouble or f"has no column {'decision' if 'pair_id' in values else 'pair_id'}"
            raise DataError(f"{path}, {where}: {why}", hint=_COLUMNS)
        cells = {name: _cell(values.get(name)) for name in ("decision", "note", "reviewer")}
        decision = cells["decision"].lower()
        if not decision:
            continue
        if decision not in DECISIONS:
            faults.append(f"{where}: {decision[:40]!r} is none of {', '.join(DECISIONS)}")
        pair_id = "" if values["pair_id"] is None else str(values["pair_id"])
        rows.append(Decision(pair_id, decision, cells["reviewer"], cells["note"], where))
        datasets[_cell(values.get("dataset"))] = None
    faults += _contradictions(rows)
    if faults:
        raise DataError(
            f"{path}: {plural(len(faults), 'row')} cannot be used: {first_five(faults)}",
            hint="Nothing was changed. Correct these rows, then repeat the command.",
        )
    if not rows:
        raise DataError(f"{path} contains no decision", hint=_COLUMNS)
    if len(datasets) > 1:
        raise DataError(
            f"{path} has decisions about {len(datasets):,} datasets: its column `dataset` differs",
            hint="Apply the decisions of each page separately.",
        )
    return Decisions(path, tuple(rows), next(iter(datasets)))


def _cell(value: Any) -> str:
    """A cell as text; empty for null and NaN."""
    return "" if value is None or value != value else str(value).strip()


def _contradictions(rows: Sequence[Decision]) -> list[str]:
    """Rows that decide otherwise about a pair than an earlier one, in words."""
    first: dict[str, Decision] = {}
    return [
        f"{row.where}: {row.decision} contradicts {earlier.decision} in {earlier.where} "
        f"about pair {row.pair_id}"
        for row in rows
        if (earlier := first.setdefault(row.pair_id, row)).decision != row.decision
    ]


def run_of(decisions: Decisions, run: str | None, runs_directory: Path) -> RunScores:
    """The run that the decisions are about: the named one, else the latest of their dataset.

    Raises UsageError if the file does not state its dataset and no run is named, RunError if there
    is no such run or it is of another dataset.
    """
    quoted = shlex.quote(str(decisions.path))
    if run is None:
        if not decisions.dataset:
            raise UsageError(
                f"{decisions.path} has no column `dataset`, which names the dataset it is about",
                hint=f"Name their run: noisescope apply {quoted} RUN",
            )
        fitting = [
            found for found in finished_runs(runs_directory)
            if found.plan()["dataset_fingerprint"] == decisions.dataset
        ]  # fmt: skip
        if not fitting:
            raise RunError(
                f"no run under {runs_directory} has the dataset of {decisions.path} (fingerprint "
                f"{decisions.dataset[:20]})",
                hint=f"Name the directory of its run: noisescope apply {quoted} RUN",
            )
        run = str(fitting[-1].directory)
    scores = find_run_scores(run, runs_directory, force=True)  # people decided, not the scores
    theirs = str(scores.manifest.get("dataset_fingerprint"))
    if decisions.dataset not in ("", theirs):
        raise RunError(
            f"{decisions.path} is about another dataset than {scores.run.directory}: their "
            f"fingerprints are {decisions.dataset[:20]} and {theirs}",
            hint=f"Find the run of their dataset, if there is one: noisescope apply {quoted}",
        )
    return scores


def apply_decisions(
    scores: RunScores, source: Source | None, decisions: Decisions, out: Path, *, reviewer: str
) -> Applied:
    """Write the corrected copy of `source` to `out` (none without a source); record the decisions.

    `reviewer` decided where the file names nobody. Repeating it changes nothing. Raises DataError
    for pairs that the run does not have and copies of a pair with contradictory decisions,
    UsageError if `out` holds anything but a copy made from these decisions or the format cannot
    be written back.
    """
    pairs, population = _pairs(scores, decisions), read_population(scores.run)
    actions = _actions(scores, decisions)
    counts = decisions.counts()
    if source is not None:
        facts = {"decisions": decisions.digest}
        _claim(out, facts | {"dataset_fingerprint": scores.manifest.get("dataset_fingerprint")})
        words = ", ".join(f"{number:,} {name}" for name, number in counts.items())
        own = {"p_wrong": np.full(len(scores), np.nan)}  # not used, and changes with the reviews
        unscored = replace(scores, columns=scores.columns | own)
        cleaner = plan_copy(unscored, source, actions, f"decided by people: {words}", "apply")
        write_directory(out, cleaner.facts | facts, lambda folder: cleaner.fill(folder, folder))
    recorded = _record(scores, decisions, pairs, population.digest, reviewer)
    changed = {
        pairs[name]["content_id"]
        for name, choice in decisions.by_pair.items()
        if DECISIONS[choice] != KEEP
    }
    listed = sum(pair["content_id"] in changed for pair in pairs.values())
    unlisted = int(np.isin(population.contents, keys_of(list(changed))).sum()) - listed
    known, others = len(decisions.rows) - recorded, _others(scores, decisions)
    return Applied(counts, recorded, known, others, unlisted)


def _actions(scores: RunScores, decisions: Decisions) -> Actions:
    """The action [N] of each pair: what was decided, KEEP for all others."""
    actions = np.full(len(scores), KEEP, np.int8)
    decided = decisions.by_pair
    actions[scores.positions(list(decided))] = [DECISIONS[choice] for choice in decided.values()]
    return actions


def _claim(out: Path, facts: Mapping[str, Any]) -> None:
    """Raise UsageError unless `out` is new, empty, or a copy with exactly these facts."""
    claim(out)
    if not (out / MARK).is_file():
        return
    made = json.loads((out / MARK).read_text("utf-8"))
    if any(made.get(name) != value for name, value in facts.items()):
        raise UsageError(
            f"{out} holds the export of other decisions, or one of another kind",
            hint="Choose another place with --output, or remove it first.",
        )


def _pairs(scores: RunScores, decisions: Decisions) -> dict[str, dict[str, str]]:
    """content_id, chosen and rejected of the decided pairs, by pair id.

    Raises DataError for unknown pairs and for copies with contradictory decisions.
    """
    decided = decisions.by_pair
    contents: dict[str, tuple[str, str]] = {}
    found: dict[str, dict[str, str]] = {}
    columns = ("content_id", "chosen", "rejected")
    for batch, _ in scores.pairs(columns):
        for at, name in enumerate(batch.column(0).to_pylist()):
            if name in decided:
                found[name] = {key: batch.column(key)[at].as_py() for key in columns}
    if unknown := [row for row in decisions.rows if row.pair_id not in found]:
        faults = [f"{row.pair_id or 'an empty id'} ({row.where})" for row in unknown]
        raise DataError(
            f"{decisions.path}: {len(unknown):,} of {len(decisions.rows):,} decisions are about "
            f"pairs that {scores.run.directory} does not have: {first_five(faults)}",
            hint="Nothing was changed. Name the run whose page it was: noisescope apply "
            f"{shlex.quote(str(decisions.path))} RUN",
        )
    faults = []
    for name, pair in found.items():
        meaning = {"keep": pair["chosen"], "flip": pair["rejected"]}.get(decided[name])
        known, earlier = contents.setdefault(pair["content_id"], (meaning or decided[name], name))
        if known != (meaning or decided[name]):
            faults.append(f"{earlier} and {name}")
    if faults:
        raise DataError(
            f"{decisions.path}: {len(faults):,} decisions contradict that about the same two "
            f"responses to the same prompt: {first_five(faults)}",
            hint="Nothing was changed. Correct these rows, then repeat the command.",
        )
    return found


def _record(
    scores: RunScores,
    decisions: Decisions,
    pairs: Mapping[str, Mapping[str, str]],
    population: str,
    reviewer: str,
) -> int:
    """Add the decisions that the run's reviews do not have yet; how many."""
    rows = [replace(row, reviewer=row.reviewer or reviewer) for row in decisions.rows]
    names_of = {slug(row.reviewer): row.reviewer for row in rows}
    held = [Journal(scores.run.directory, who) for who in names_of.values()]
    log = read_reviews(scores.run)  # what nobody else adds to now
    known = {
        (one.reviewer, one.content_id): (one.better or one.answer, one.note)
        for one in log.decisions
    }
    names = tuple(decisions.by_pair)
    purpose = reviews.DECIDE
    draw = Draw(digest(purpose, population, decisions.digest), purpose, population, pairs=names)
    new: list[Answer] = []
    for row in rows:
        pair = pairs[row.pair_id]
        sides = side_key(pair["chosen"]), side_key(pair["rejected"])
        answer = Answer(row.pair_id, pair["content_id"], row.reviewer, _ANSWERS[row.decision],
                        sides, draw.id, note=row.note)  # fmt: skip
        place = row.reviewer, pair["content_id"]
        if known.get(place) != (answer.better or answer.answer, row.note):
            new.append(answer)
            known[place] = answer.better or answer.answer, row.note
    if new:
        shown = () if draw.id in log.draws else (draw,)
        held[0].append(*(line.to_json() for line in (*shown, *new)))
    return len(new)


def _others(scores: RunScores, decisions: Decisions) -> int:
    """Pairs that reviewers corrected elsewhere and this file does not mention."""
    latest = read_latest(scores.run)  # with the decisions that were recorded just now
    corrected = {one.pair_id for one in latest if one.verdict in ("wrong", "drop")}
    return len(corrected.difference(decisions.by_pair))
