"""Import people's answers from elsewhere into a run's reviews.jsonl.

    done = import_answers(run, Path("answers.csv"), reviewer="ann")   # {"imported": 38, ...}

Read are what `export --format review` came back as: Label Studio's JSON, JSON-MIN and CSV exports,
Argilla's records.json or a table with `better.responses`, and spreadsheets (CSV, JSON lines,
Parquet) with a column pair_id and one of

    better, answer    a, b, tie, skip as the queue shows the sides; chosen, rejected
    mislabelled       true, false
    decision          keep (the label is right), flip (it is wrong)

Where a row holds the texts `a` and `b` they decide what the answer means, whatever the labels are;
without them it means what the queue of this run shows. Importing a file twice adds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from noisescope.datasets.flip.plan import coins
from noisescope.datasets.readers import check_suffix, read_file
from noisescope.errors import DataError, RunError, first_five
from noisescope.export.review import ORDER
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
#: Columns that may hold the answer, first come first served.
ANSWERS = ("better", "better.responses", "answer", "decision", "mislabelled")
REVIEWERS = ("reviewer", "annotator", "completed_by", "better.responses.users")
#: What `mislabelled` may be.
_TRUTH = {"true": "rejected", "1": "rejected", "1.0": "rejected"} | dict.fromkeys(
    ("false", "0", "0.0"), "chosen"
)
_IMAGE = re.compile(r"([0-9a-f]{20})\.[a-z]+$")


@final
@dataclass(frozen=True)
class Row:
    """One answer as a file has it; `a` and `b` are the sides as shown, None where they are not
    given.
    """

    where: str
    pair_id: str
    answer: str
    reviewer: str | None
    a: str | None
    b: str | None


def import_answers(run: Run, path: Path, reviewer: str) -> dict[str, int]:
    """Add the answers in `path` to the run's reviews; how many are new, known, and of other pairs.

    `reviewer` is who answered where the file does not say. Raises DataError for a file that holds
    no answers, or some that cannot be understood.
    """
    rows = list(read_answers(path))
    if not rows:
        raise DataError(
            f"{path} holds no answers",
            hint="A column pair_id and one of better, answer, decision, mislabelled is needed.",
        )
    pairs = _pairs(run, {row.pair_id for row in rows})
    draw = Draw(digest("import", *(f"{r.pair_id} {r.answer} {r.reviewer}" for r in rows)),
                "import", read_population(run).digest)  # fmt: skip
    faults: list[str] = []
    answers: list[Answer] = []
    for row in rows:
        if row.pair_id not in pairs:
            continue
        try:
            answers.append(_answer(row, pairs[row.pair_id], reviewer, draw))
        except ValueError as error:
            faults.append(f"{row.where}: {error}")
    if faults:
        raise DataError(
            f"{len(faults):,} answers cannot be understood: {first_five(faults)}",
            hint="Known are a, b, tie, skip, chosen, rejected, keep, flip; nothing was imported.",
        )
    if not answers:
        raise DataError(
            f"none of the {len(rows):,} answers in {path} is about a pair of {run.directory}",
            hint="Name the run whose queue was answered: noisescope review RUN --import FILE",
        )
    known = {answer.id for answer in read_reviews(run).answers}
    new = [answer for answer in answers if answer.id not in known]
    if new:
        journal = Journal(run.directory, reviewer)
        journal.append(draw.to_json())
        for answer in new:
            journal.append(answer.to_json())
    others = len(rows) - len(answers)
    return {"imported": len(new), "known before": len(answers) - len(new), "of other pairs": others}


def read_answers(path: Path) -> Iterator[Row]:
    """The answered rows of a file, or of the directory that Argilla wrote."""
    path = path / "records.json" if (path / "records.json").is_file() else path
    if not path.is_file():
        raise DataError(f"{path} does not exist", hint="Name the file of answers.")
    check_suffix(path)
    for row in read_file(path, path.name):
        if row.values is None:
            raise DataError(f"{path.name}:{row.number} cannot be read: {row.trouble}")
        yield from _rows(f"{path.name}:{row.number}", row.values)


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
    else:
        yield from _row(where, values)


def _label_studio(where: str, data: Mapping[str, Any], annotations: list[Any]) -> Iterator[Row]:
    for annotation in annotations:
        if annotation.get("was_cancelled"):
            continue
        who = annotation.get("completed_by")
        who = who.get("email") if isinstance(who, dict) else who
        for result in annotation.get("result", ()):
            choices = result.get("value", {}).get("choices") or [None]
            yield from _row(where, {**data, "better": choices[0], "reviewer": who})


def _row(where: str, values: Mapping[str, Any]) -> Iterator[Row]:
    """One row of a table; none where it has no answer."""
    pair_id = values.get("pair_id", values.get("id"))
    stated = [(name, values[name]) for name in ANSWERS if values.get(name) not in (None, "")]
    if pair_id in (None, "") or not stated:
        return
    name, answer = stated[0]
    text = str(answer).strip().lower().removesuffix("is better").strip()
    if name == "mislabelled":
        text = _TRUTH.get(text, text)
    who = next((values[n] for n in REVIEWERS if values.get(n) not in (None, "")), None)
    sides = (values.get(side) for side in "ab")
    a, b = (side if isinstance(side, str) and side else None for side in sides)
    yield Row(where, str(pair_id), text, None if who is None else str(who), a, b)


def _answer(row: Row, pair: Mapping[str, str], reviewer: str, draw: Draw) -> Answer:
    """The answer of a row. Raises ValueError, in words, where it means nothing."""
    word = WORDS.get(row.answer)
    if word is None:
        raise ValueError(f"{row.answer[:40]!r} is no answer")
    who = row.reviewer or reviewer
    if len(who) > LONGEST_NAME or not who.isprintable():
        raise ValueError(f"{who[:40]!r} is no name")
    better, worse = pair["chosen"], pair["rejected"]
    if row.a is not None and row.b is not None:
        found = [_matching(text, (better, worse)) for text in (row.a, row.b)]
        shown = [side for side in found if side is not None]
        if set(shown) != {better, worse}:
            raise ValueError("its sides a and b are not those of the pair")
    else:
        turned = coins([row.pair_id], 0, ORDER)[0] < 0.5
        shown = [worse, better] if turned else [better, worse]
    if word in ("chosen", "rejected"):
        word = "ab"[shown.index(pair[word])]
    choices: dict[str, Choice] = {"a": "first", "b": "second", "tie": "tie", "skip": "skip"}
    return Answer(
        row.pair_id,
        pair["content_id"],
        who,
        choices[word],
        (side_key(shown[0]), side_key(shown[1])),
        draw.id,
        id=digest("imported", draw.id, who, row.pair_id, word)[:16],
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

    wanted = pa.array(sorted(names), pa.string())
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
