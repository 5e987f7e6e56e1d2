"""Open a judge as a source of evidence: choose the pairs within its budget, and ask.

    opened = open_judge(source, dataset, policy, config, runs_directory, command, reporter)

With a budget for all pairs, all are asked. With less, an audit without the judge is made first,
and a fifth of the pairs (at least `DRAWN_LEAST`, at most half) is drawn at random; the others are
those around the place in the ranking where the expected number of wrong labels (the sum of
p_wrong) is reached, where an answer changes most. Only the random ones decide how
far the judge is trusted: the label of the others was doubted before, so a judge that is right
contradicts most of them and would look reversed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, UsageError
from noisescope.models.chat import Endpoint, key_of
from noisescope.pairs import PreferenceDataset, digest, hashed
from noisescope.progress import Reporter
from noisescope.replicas.answers import CALLS, LOG_PROBABILITIES, WORDING, Answers, Question
from noisescope.replicas.groups import pair_keys
from noisescope.replicas.judge import ATTEMPTS, Judge, Judged
from noisescope.replicas.numbers import numbers_fingerprint
from noisescope.replicas.outside import DRAWN, SELECTED
from noisescope.replicas.sources import Asked, Opened, Source
from noisescope.storage.files import locked

if TYPE_CHECKING:
    from noisescope.models import Policy
    from noisescope.replicas.gather import EvidenceConfig

Bool = NDArray[np.bool_]

#: Share of the asked pairs that is drawn at random, and the least number.
DRAWN_SHARE, DRAWN_LEAST = 5, 100
#: Fewest pairs that can show how far a judge is to be trusted.
FEWEST = 20
#: Calls that may be spent on finding out what an endpoint without log-probabilities gives.
PROBES = 2
_SALT = 41


def open_judge(
    source: Source,
    dataset: PreferenceDataset,
    policy: Policy,
    config: EvidenceConfig,
    runs_directory: Path,
    command: str,
    reporter: Reporter,
) -> Opened:
    """Ask the judge about the pairs of `dataset`; what was answered before is not asked again.

    Raises UsageError without a budget for what is missing, RunError if the endpoint fails.
    """
    url, _, model = source.name.partition("#")
    if not url or not model.strip() or "?" in url:
        raise UsageError(
            f"--evidence {source} must be judge:URL#MODEL",
            hint="Such as judge:http://127.0.0.1:8000/v1#qwen3-8b, without any key in it: "
            "--key-env names the variable that has one.",
        )
    key = key_of(config.key_env)
    endpoint = Endpoint(url, model, key, attempts=ATTEMPTS, option="--evidence judge:URL")
    made_by = digest("judge", str(WORDING), endpoint.address, model)
    folder = runs_directory / ".cache" / "judges" / made_by
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, elsewhere="--runs-dir"):
        judge = Judge(endpoint, Answers(folder / "answers.jsonl"))
        if judge.answers.mode is not None:
            note = f"{source}: uses the answers in {folder}; remove that folder if another model "
            reporter.note(note + "now has this name there")
        return _opened(source, judge, dataset, policy, config, runs_directory, command, reporter)


def _opened(
    source: Source,
    judge: Judge,
    dataset: PreferenceDataset,
    policy: Policy,
    config: EvidenceConfig,
    runs_directory: Path,
    command: str,
    reporter: Reporter,
) -> Opened:
    """`open_judge` of a judge whose answers are locked."""
    table = dataset.table
    names = ("prompt", "chosen", "rejected")
    pairs = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
    every = np.ones(len(pairs), bool)
    mode = judge.answers.mode
    if config.budget is None:
        if mode is None or judge.missing(_questions(pairs, every), mode):
            raise _unbudgeted(judge, pairs, command)
        drawn, selected = every, ~every
    else:
        cost = _cost(min(config.budget, _needed(judge, pairs, every, mode)), pairs)
        reporter.note(f"{source}: at most {cost}; the texts are sent to {judge.endpoint.url}")
        drawn_first = int(np.argmin(_places(pair_keys(table), config.seed)))
        mode = judge.probe(_questions([pairs[drawn_first]], every[:1])[0], command)
        count = _affordable(config.budget, mode, len(pairs))
        if count == len(pairs):
            drawn, selected = every, ~every
        else:
            p_wrong = _first_audit(dataset, policy, config, runs_directory, reporter)
            drawn, selected = choose(pair_keys(table), p_wrong, count, config.seed)
    asked = drawn | selected
    missing = judge.missing(_questions(pairs, asked), mode)
    what = f"{asked.sum():,} of {len(pairs):,} pairs"
    if selected.any():
        what += f" ({drawn.sum():,} at random, {selected.sum():,} around the line)"
    reporter.note(f"{source}: {what}, {mode}, {_cost(missing, pairs)} still to make")
    rows = np.flatnonzero(asked)
    order = np.concatenate([rows[drawn[rows]], rows[~drawn[rows]]])
    judged = judge.ask([pairs[row] for row in order], mode, reporter, command)
    known = np.isfinite(judged.log_odds)
    if known.sum() < len(order) / 2:
        raise RunError(
            f"{source} has no answer for {(~known).sum():,} of {len(order):,} pairs: "
            f"{judged.remark()}",
            hint="It must reply with 1 or 2: choose a model that follows instructions, with its "
            "thinking switched off.",
        )
    return _with_numbers(source, table, order, judged, drawn)


def _with_numbers(
    source: Source, table: Any, order: NDArray[np.int64], judged: Judged, drawn: Bool
) -> Opened:
    """The source with its answers about the pairs in rows `order`, NaN for all others."""
    numbers = {}
    values = {"chosen_first": judged.chosen_first, "rejected_first": judged.rejected_first}
    for name, some in (("log_odds", judged.log_odds), *values.items()):
        numbers[name] = np.full(len(drawn), np.nan)
        numbers[name][order] = some
    whole = numbers.pop("log_odds")
    numbers[DRAWN] = np.where(drawn, whole, np.nan)
    numbers[SELECTED] = np.where(drawn, np.nan, whole)
    known = np.isfinite(whole)
    asked = Asked(int((known & drawn).sum()), int((known & ~drawn).sum()))
    ids = table.column("pair_id").to_pylist()
    fingerprint = numbers_fingerprint(ids, numbers)
    return Opened(source, fingerprint, None, numbers, f"{source}: {judged.remark()}", asked)


def choose(
    keys: NDArray[np.uint64], p_wrong: NDArray[np.float64], count: int, seed: int
) -> tuple[Bool, Bool]:
    """Which pairs [N] are drawn at random, and which are selected: `count` in all.

    Selected are those with p_wrong nearest that of the pair at rank sum(p_wrong): an answer moves
    them across the line between the labels that are probably wrong and the others.
    """
    random = min(count // 2, max(count // DRAWN_SHARE, DRAWN_LEAST))
    drawn, selected = np.zeros(len(keys), bool), np.zeros(len(keys), bool)
    drawn[np.argsort(_places(keys, seed), kind="stable")[:random]] = True
    rest = np.flatnonzero(~drawn)
    line = np.sort(p_wrong)[::-1][min(len(keys) - 1, round(float(p_wrong.sum())))]
    near = np.argsort(np.abs(p_wrong[rest] - line), kind="stable")
    selected[rest[near[: count - random]]] = True
    return drawn, selected


def _places(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Random numbers [N] by which pairs are drawn, the least first: always asked, so probed."""
    return hashed(keys, seed, _SALT)


def _first_audit(
    dataset: PreferenceDataset,
    policy: Policy,
    config: EvidenceConfig,
    runs_directory: Path,
    reporter: Reporter,
) -> NDArray[np.float64]:
    """p_wrong [N] of an audit with all evidence but judges, which is a run of its own."""
    import pyarrow.parquet as pq

    from noisescope.auditing.audit import audit

    reporter.note("first an audit without the judge: it shows where an answer changes most")
    others = tuple(one for one in config.sources if str(one) not in config.judges)
    plain = replace(config, sources=others, budget=None, key_env=None)
    run = audit(
        dataset,
        policy,
        evidence=plain,
        runs_directory=runs_directory,
        command="noisescope score",
        reporter=reporter,
    ).run
    scores = pq.read_table(run.scores_path, columns=["pair_id", "p_wrong_audit"])
    found = dict(zip(*(column.to_pylist() for column in scores.columns), strict=True))
    return np.array([found[one] for one in dataset.table.column("pair_id").to_pylist()], float)


def _questions(pairs: list[tuple[str, str, str]], some: Bool) -> list[Question]:
    """Both orders of some pairs."""
    return [
        Question(prompt, first, second)
        for (prompt, one, other), asked in zip(pairs, some.tolist(), strict=True)
        if asked
        for first, second in ((one, other), (other, one))
    ]


def _needed(judge: Judge, pairs: list[tuple[str, str, str]], some: Bool, mode: str | None) -> int:
    """Calls that some pairs still need; those of the dearest mode if it is not known."""
    return judge.missing(_questions(pairs, some), mode or "votes")


def _affordable(budget: int, mode: str, pairs: int) -> int:
    """How many pairs a budget is for. Raises UsageError if they are too few."""
    each = 2 * CALLS[mode]
    spent = 0 if mode == LOG_PROBABILITIES else PROBES
    count = min(pairs, (budget - spent) // each)
    least = min(FEWEST, pairs)
    if count < least:
        raise UsageError(
            f"--budget {budget:,} is for {max(count, 0):,} pairs: too few to see how far the judge "
            f"can be trusted ({each} calls a pair)",
            hint=f"Allow {least * each + spent:,} calls or more.",
        )
    return count


def _cost(calls: int, pairs: list[tuple[str, str, str]]) -> str:
    """Calls and tokens in words."""
    each = np.mean([one.tokens for one in _questions(pairs, np.ones(len(pairs), bool))])
    return f"{calls:,} calls, about {calls * each:,.0f} tokens"


def _unbudgeted(judge: Judge, pairs: list[tuple[str, str, str]], command: str) -> UsageError:
    """The refusal to ask without a budget, with what all pairs and a tenth of them cost."""
    every, mode = np.ones(len(pairs), bool), judge.answers.mode
    questions = _questions(pairs, every)
    calls = len(judge.by_key(questions)) * CALLS[mode or LOG_PROBABILITIES]
    missing = judge.missing(questions, mode or LOG_PROBABILITIES)
    dear = "" if mode else f" (without log-probabilities {CALLS['votes']} times as many)"
    spent = PROBES if mode == "votes" else 0
    typed = command if command.startswith(("noisescope score", "noisescope fine-tune")) else ""
    line = f"{typed or 'noisescope score DATASET'} --budget"
    tenth = max(calls // 10, 2 * CALLS[mode or LOG_PROBABILITIES] * min(FEWEST, len(pairs)))
    return UsageError(
        f"{judge.endpoint.model} would be asked about {len(pairs):,} pairs in both orders: "
        f"{_cost(missing, pairs)}{dear}",
        hint=f"All pairs:              {line} {calls + spent}\n"
        f"Where it changes most:  {line} {tenth + spent}",
    )
