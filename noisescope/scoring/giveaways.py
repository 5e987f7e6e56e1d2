"""Find what gives labels away on the surface of a text: a mark on one side of the pairs only.

    for found in find_giveaways(chosen, rejected):
        print(found.sentence)

An end token, a template's mark, a run-on turn or a constant beginning or end on chosen sides alone
makes any label easy to learn: coin tosses then reach a held-out accuracy of 100 %. The AUROC of
the presence of a mark for the label is 1/2 + (p_chosen - p_rejected) / 2, with p the share of
sides that have it. Needs the texts alone: no model, and a few seconds at most. So does a length
that decides (nearly) every label (`length_decides`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Literal, final

import numpy as np
from numpy.typing import NDArray

from noisescope.scoring.metrics import share

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.storage.run import Run

Place = Literal["begins", "ends", "is in"]

#: AUROC from which a mark is noted: on its own it then decides the label of half of all pairs.
NOTED = 0.75
#: Most pairs looked at, evenly spread over the dataset.
LOOKED_AT = 20_000
#: Texts of at most $most pairs of $pairs, evenly spread.
SAMPLE = """
SELECT chosen, rejected FROM read_parquet($pairs, file_row_number = true)
WHERE file_row_number % greatest(1, ceil((SELECT count(*) FROM read_parquet($pairs)) / $most)) = 0
ORDER BY file_row_number
"""
#: Characters of a beginning or an end that are compared.
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
#: Special tokens as text, and turns that a response goes on with.
MARK = re.compile(
    r"<\|[^\s|<>]{1,40}\|>|<｜[^\s<>]{1,40}｜>|</?s>|<(?:eos|bos|pad|unk)>|</?think>|</?tool_call>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|\[(?:SEP|CLS|PAD|EOS)\]"
    r"|\n\n(?:Human|User|Assistant|System):|###\s?(?:Instruction|Response|Input):"
)
#: Share of the pairs whose label length must predict to count as what decided them, and the least
#: low end of its 90 % interval. Preference data of people and of models have 0.4 to 0.75.
DECIDED, DECIDED_LOW = 0.95, 0.90
#: Standard errors by which the sides must differ: over a hundred candidates, one in ten by chance.
SIGMAS = 3.0


@final
@dataclass(frozen=True)
class Giveaway:
    """A mark: in how many of `pairs` the chosen and the rejected side have it."""

    text: str
    place: Place
    chosen: int
    rejected: int
    pairs: int

    def marks(self, text: str) -> bool:
        """Whether a text has it, at its place."""
        if self.place == "begins":
            return text.lstrip().startswith(self.text) or text.startswith(self.text)
        if self.place == "ends":
            return text.rstrip().endswith(self.text) or text.endswith(self.text)
        return self.text in text

    @property
    def auroc(self) -> float:
        """AUROC of its presence (or absence) for the label, 0.5 to 1."""
        return 0.5 + abs(self.chosen - self.rejected) / (2 * self.pairs)

    @property
    def sentence(self) -> str:
        """What it is and what it means, for notes."""
        return (
            f"{self.text!r} {self.place} {self.chosen:,} of {self.pairs:,} chosen and "
            f"{self.rejected:,} of {self.pairs:,} rejected responses: it gives the label away "
            f"(AUROC {self.auroc:.3f}), and held-out accuracy and flip rate are about this mark. "
            "Unless that is what people judged, remove it and score again."
        )


def find_giveaways(
    chosen: Sequence[str], rejected: Sequence[str], least: float = NOTED
) -> list[Giveaway]:
    """Marks of AUROC `least` or more, the best first and one for each place at most.

    Of marks that are as good, special tokens come before ends, and longer texts before shorter.
    """
    found: dict[str, Giveaway] = {}
    for mark in _candidates(chosen, rejected, (2 * least - 1) * len(chosen) - 1):
        total = mark.chosen + mark.rejected
        # At most `total` pairs have it on one side only: the standard error of the difference.
        clear = abs(mark.chosen - mark.rejected) >= SIGMAS * sqrt(total)
        if clear and mark.auroc >= least:
            known = found.get(mark.place)
            if known is None or (mark.auroc, len(mark.text)) > (known.auroc, len(known.text)):
                found[mark.place] = mark
    ranked = sorted(found.values(), key=lambda mark: (-mark.auroc, mark.place != "is in"))
    return _without_echoes([_placed(mark, chosen, rejected) for mark in ranked])


def length_decides(longer: NDArray[np.int64] | None) -> str | None:
    """What to state where length alone predicts nearly every label, else None.

    `longer` [N]: 1 where the chosen response is longer, 0 where shorter, -1 where they are alike,
    which counts half; None where lengths are unknown. A judge of such labels may have learnt
    nothing but length: every label that a rule of length got wrong then looks right to it.
    """
    if longer is None:
        return None
    chosen = (float((longer == 1).sum()) + float((longer < 0).sum()) / 2) / len(longer)
    side, decided = ("longer", chosen) if chosen >= 0.5 else ("shorter", 1 - chosen)
    if decided < DECIDED or share(decided * len(longer), len(longer)).low < DECIDED_LOW:
        return None
    return (
        f"The {side} response is the chosen one in {_percent(decided)} of the pairs: this audit "
        "cannot distinguish a preference for length from a rule of length, and would confirm the "
        "errors of either."
    )


def _percent(decided: float) -> str:
    """Print a share; 100 % only where it is all."""
    return "100%" if decided == 1 else f"{min(decided, 0.99):.0%}"


def _candidates(
    chosen: Sequence[str], rejected: Sequence[str], fewest: float
) -> Iterator[Giveaway]:
    """Every mark, beginning and end that one side has `fewest` times or more."""

    def frequent(counts: Sequence[Counter[str]]) -> dict[str, None]:
        return {text: None for side in counts for text, n in side.items() if n >= fewest}

    sides = chosen, rejected
    marks = [Counter(mark for text in side for mark in set(MARK.findall(text))) for side in sides]
    for text in frequent(marks):
        yield Giveaway(text, "is in", marks[0][text], marks[1][text], len(chosen))
    left: dict[Place, Sequence[Sequence[str]]] = {"begins": sides, "ends": sides}
    for size in LENGTHS:
        for place in left:
            part = slice(size) if place == "begins" else slice(-size, None)
            long = [[text for text in side if len(text) >= size] for side in left[place]]
            counts = [Counter(text[part] for text in side) for side in long]
            common = frequent(counts)
            # A longer beginning is no more frequent than the shorter one that it begins with.
            left[place] = [[text for text in side if text[part] in common] for side in long]
            for text in common:
                yield Giveaway(text, place, counts[0][text], counts[1][text], len(chosen))


def _placed(mark: Giveaway, chosen: Sequence[str], rejected: Sequence[str]) -> Giveaway:
    """A mark that is always at the end, or at the beginning, as one of that place."""
    if mark.place != "is in":
        return mark
    having = [text for side in (chosen, rejected) for text in side if mark.text in text]
    places: list[Place] = []
    if all(text.rstrip().endswith(mark.text) for text in having):
        places.append("ends")
    if all(text.lstrip().startswith(mark.text) for text in having):
        places.append("begins")
    place: Place = places[0] if places else "is in"
    return Giveaway(mark.text, place, mark.chosen, mark.rejected, mark.pairs)


def _without_echoes(marks: list[Giveaway]) -> list[Giveaway]:
    """Marks without those that are only a piece, or a wider view, of a better one."""
    kept: list[Giveaway] = []
    for mark in marks:
        if not any(mark.text in other.text or other.text in mark.text for other in kept):
            kept.append(mark)
    return kept


def notes_of(chosen: Sequence[str], rejected: Sequence[str]) -> list[str]:
    """What a reader should know of the two sides before any score."""
    return [mark.sentence for mark in find_giveaways(chosen, rejected)]


def table_notes(table: pa.Table) -> list[str]:
    """The same of a pairs table, at most LOOKED_AT of its rows."""
    step = max(1, -(-table.num_rows // LOOKED_AT))
    rows = table.select(["chosen", "rejected"])
    rows = rows.take(list(range(0, table.num_rows, step)))
    return notes_of(*(column.to_pylist() for column in rows.columns))


def run_notes(run: Run) -> list[str]:
    """The same of a run's pairs.parquet."""
    from noisescope.scoring.margins import connect

    with connect() as connection:
        found = connection.execute(SAMPLE, {"pairs": str(run.pairs_path), "most": LOOKED_AT})
        rows = found.fetchall()
    return notes_of(*zip(*rows, strict=True)) if rows else []
