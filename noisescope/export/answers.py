"""Import people's answers from elsewhere into a run's reviews.jsonl.

    done = import_answers(run, Path("answers.csv"), reviewer="ann")   # {"imported": 38, ...}

Reads what `export --format review` wrote once it is filled in: Label Studio's JSON, JSON-MIN and
CSV exports, Argilla's records.json or a table with `better.responses`, and spreadsheets (CSV, JSON
lines, Parquet) with a column pair_id and one of

    better, answer    a, b (in a row with the texts `a` and `b`), chosen, rejected, tie, skip
    mislabelled       yes, no, true, false, 1, 0
    decision          keep (the label is right), flip (it is wrong)

The texts `a` and `b` decide which side an answer means, whatever the labels are. A row whose
columns contradict each other, or rows in which one reviewer does, are refused. Importing a file
twice adds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from noisescope.datasets.readers import check_suffix, read_file
from noisescope.errors import DataError, RunError, first_five
from noisescope.pairs import digest
from noisescope.scoring.reviews import read_population
from noisescope.storage.reviews import (
    LONGEST_NAME,
    Answer,
    Choice,
    Draw,
    Journal,
    read_reviews,
    side_key,
)
from noisescope.storage.run import Run

#: Answers, in lower case and without "is better".
WORDS: dict[str, str] = {
    **dict.fromkeys(("a", "1", "first"), "a"),
    **dict.fromkeys(("b", "2", "second"), "b"),
    **dict.fromkeys(("tie", "equal", "equally good", "both"), "tie"),
    **dict.fromkeys(("skip", "unclear", "unsure"), "skip"),
    **dict.fromkeys(("chosen", "keep", "right"), "chosen"),
    **dict.fromkeys(("rejected", "flip", "wrong"), "rejected"),
}
_NUMBERED = ("1", "2", "first", "second")
_JUDGED = {word: meaning for word, meaning in WORDS.items() if meaning in ("tie", "skip")}
#: Columns that may hold the answer, with the words that they may contain.
ANSWERS: dict[str, dict[str, str]] = {
    "better": WORDS,
    "better.responses": WORDS,
    "answer": WORDS,
    "decision": {word: WORDS[word] for word in WORDS if word not in _NUMBERED},
    "mislabelled": _JUDGED
    | dict.fromkeys(("yes", "true", "1", "1.0", "wrong"), "rejected")
    | dict.fromkeys(("no", "false", "0", "0.0", "right"), "chosen"),
}
REVIEWERS = ("reviewer", "annotator", "completed_by", "better.responses.users")
_IMAGE = re.compile(r"([0-9a-f]{20})\.[a-z]+$")


@final
@dataclass(frozen=True)
class Row:
    """One answer as a file has it: the answer columns with their texts; `a` and `b` are the sides
    as shown, None if they are not given.
    """

    where: str
    pair_id: str
    stated: tuple[tuple[str, str], ...]
    reviewer: str | None
    a: str | None
    b: str | None

    @property
    def text(self) -> str:
        """The answer and who gave it, for a digest of the file."""
        return " ".join([self.pair_id, *(text for _, text in self.stated), str(self.reviewer)])


def import_answers(run: Run, path: Path, reviewer: str) -> dict[str, int]:
    """Add the answers in `path` to the run's reviews; count new, known and other pairs' answers.

    `reviewer` is who answered if the file does not record it. Raises DataError for a file without
    answers, or with some that cannot be understood or contradict each other.
    """
    rows = list(read_answers(path))
    if not rows:
        raise DataError(
            f"{path} holds no answers",
            hint="It needs a column pair_id and one of better, answer, decision, mislabelled.",
        )
    pairs = _pairs(run, {row.pair_id for row in rows})
    draw = Draw(
        digest("import", *(row.text for row in rows)), "import", read_population(run).digest
    )
    faults: list[str] = []
    answers: list[Answer] = []
    first: dict[tuple[str, str], tuple[str, Answer]] = {}
    for row in rows:
        if row.pair_id not in pairs:
            continue
        try:
            answer = _answer(row, pairs[row.pair_id], reviewer, draw)
        except ValueError as error:
            faults.append(f"{row.where}: {error}")
            continue
        where, earlier = first.setdefault((answer.reviewer, answer.content_id), (row.where, answer))
        if _meaning(earlier) != _meaning(answer):
            faults.append(
                f"{row.where}: {answer.reviewer} answers pair {row.pair_id} otherwise than in "
                f"{where}"
            )
        answers.append(answer)
    if faults:
        raise DataError(
            f"{len(faults):,} answers cannot be used: {first_five(faults)}",
            hint="Nothing was imported. Correct these rows; docs/review.md lists the columns and "
            "their words.",
        )
    if not answers:
        raise DataError(
            f"none of the {len(rows):,} answers in {path} is about a pair of {run.directory}",
            hint="Name the run whose queue was answered: noisescope review RUN --import FILE",
        )
    journal = Journal(run.directory, reviewer)  # before reading: no other process adds the same
    log = read_reviews(run)
    known = {(one.reviewer, one.content_id): _meaning(one) for one in log.answers}
    new = {
        (one.reviewer, one.content_id): one
        for one in answers
        if known.get((one.reviewer, one.content_id)) != _meaning(one)
    }
    if new:
        drawn = () if draw.id in log.draws else (draw,)
        journal.append(*(line.to_json() for line in (*drawn, *new.values())))
    others = len(rows) - len(answers)
    return {"imported": len(new), "known before": len(answers) - len(new), "of other pairs": others}


def read_answers(path: Path) -> Iterator[Row]:
    """The answered rows of a file, or of the directory that Argilla wrote."""
    path = path / "records.json" if (path / "records.json").is_file() else path
    if not path.is_file():
        raise DataError(f"{path} does not exist", hint="Name the file of answers.")
    check_suffix(path)
    for row in read_file(path, path.name):
        where = f"{path.name}, row {row.number + 1}"  # a user's rows begin at 1
        if row.values is None:
            raise DataError(f"{where} cannot be read: {row.trouble}")
        try:
            yield from _rows(where, row.values)
        except (AttributeError, TypeError, LookupError) as error:
            raise DataError(
                f"{where} is no row of such an export: {error}",
                hint="docs/review.md lists the formats, the columns and their words.",
            ) from error


def _rows(where: str, values: Mapping[str, Any]) -> Iterator[Row]:
    """The answers of one row, whichever tool wrote it."""
    if isinstance(values.get("annotations"), list) and isinstance(values.get("data"), dict):
        yield from _label_studio(where, values["data"], values["annotations"])
    elif isinstance(values.get("responses"), dict) and isinstance(values.get("fields"), dict):
        shown = {**values["fields"], "pair_id": values.get("id")}
        for response in values["responses"].get("better", ()):
            yield from _row(where, {**shown, "better": response.get("value"),
                                    "reviewer": response.get("user_id")})  # fmt: skip
    elif isinstance(values.get("better.responses"), list):
        users = values.get("better.responses.users") or []
        for at, value in enumerate(values["better.responses"]):
            who = users[at] if at < len(users) else None
            shown = {"pair_id": values.get("id"), **values}
            yield from _row(where, {**shown, "better": value, "reviewer": who})
    elif "decision" in values and "dataset" in values:
        raise DataError(
            f"{where}: decisions of a report page, which shows the labels",
            hint="Use noisescope apply FILE: it keeps them apart from blind answers.",
        )
    else:
        yield from _row(where, values)


def _label_studio(where: str, data: Mapping[str, Any], annotations: list[Any]) -> Iterator[Row]:
    for annotation in annotations:
        if annotation.get("was_cancelled"):
            continue
        who = annotation.get("completed_by")
        who = who.get("email") if isinstance(who, dict) else who
        for result in annotation.get("result", ()):
            for choice in result.get("value", {}).get("choices") or ():
                yield from _row(where, {**data, "better": choice, "reviewer": who})


def _row(where: str, values: Mapping[str, Any]) -> Iterator[Row]:
    """One row of a table; none if it has no answer. Raises DataError for one without a pair_id."""
    pair_id = values.get("pair_id", values.get("id"))
    stated = tuple(
        (name, _plain(values[name])) for name in ANSWERS if _plain(values.get(name)) != ""
    )
    if not stated:
        return
    if pair_id in (None, ""):
        raise DataError(f"{where}: an answer without a pair_id", hint="Fill in the column pair_id.")
    who = next((values[n] for n in REVIEWERS if values.get(n) not in (None, "")), None)
    sides = (values.get(side) for side in "ab")
    a, b = (side if isinstance(side, str) and side else None for side in sides)
    yield Row(where, str(pair_id), stated, None if who is None else str(who), a, b)


def _plain(answer: Any) -> str:
    """An answer in lower case and without "is better"; empty for null and NaN."""
    if answer is None or answer != answer:
        return ""
    return str(answer).strip().lower().removesuffix("is better").strip()


def _meaning(answer: Answer) -> str:
    """The better side, tie or skip."""
    return answer.better or answer.answer


def _answer(row: Row, pair: Mapping[str, str], reviewer: str, draw: Draw) -> Answer:
    """The answer of a row. Raises ValueError, in words, if it has no meaning or several."""
    words = {}
    for column, text in row.stated:
        word = ANSWERS[column].get(text)
        if word is None:
            raise ValueError(f"{column} {text[:40]!r} is no answer")
        words[column] = word
    who = row.reviewer or reviewer
    if len(who) > LONGEST_NAME or not who.isprintable():
        raise ValueError(f"{who[:40]!r} is no name")
    better, worse = pair["chosen"], pair["rejected"]
    shown = [better, worse]
    if row.a is not None and row.b is not None:
        found = [_matching(text, (better, worse)) for text in (row.a, row.b)]
        shown = [side for side in found if side is not None]
        if set(shown) != {better, worse}:
            raise ValueError("its sides a and b are not those of the pair")
    elif side := next((word for word in words.values() if word in ("a", "b")), None):
        raise ValueError(f"{side} needs the texts of both sides in columns a and b")
    sides = {name: "ab"[shown.index(pair[name])] for name in ("chosen", "rejected")}
    if len({sides.get(word, word) for word in words.values()}) > 1:
        listed = ", ".join(f"{column} is {text}" for column, text in row.stated)
        raise ValueError(f"its columns contradict each other: {listed}")
    word = next(iter(words.values()))
    word = sides.get(word, word)
    choices: dict[str, Choice] = {"a": "first", "b": "second", "tie": "tie", "skip": "skip"}
    return Answer(
        row.pair_id,
        pair["content_id"],
        who,
        choices[word],
        (side_key(shown[0]), side_key(shown[1])),
        draw.id,
    )


def _matching(text: str, sides: tuple[str, str]) -> str | None:
    """The side that a shown text, or the name of a shown picture, is."""
    found = _IMAGE.search(text)
    wanted = found[1] if found else " ".join(text.split())
    return next((side for side in sides if " ".join(side.split()) == wanted), None)


def _pairs(run: Run, names: set[str]) -> dict[str, dict[str, str]]:
    """The named pairs of a run: content_id, chosen and rejected by pair id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = (name.encode("utf-8", "replace") for name in sorted(names))  # lone surrogates
    wanted = pa.array(encoded, pa.string())
    columns = ["pair_id", "content_id", "chosen", "rejected"]
    found: dict[str, dict[str, str]] = {}
    try:
        with pq.ParquetFile(run.pairs_path, pre_buffer=False) as file:
            for batch in file.iter_batches(8192, columns=columns):
                mask = pa.compute.is_in(batch.column("pair_id"), value_set=wanted)
                for pair in batch.filter(mask).to_pylist():
                    found[pair["pair_id"]] = pair
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RunError(f"{run.pairs_path} cannot be read: {error}") from error
    return found
