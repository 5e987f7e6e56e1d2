"""Count what is read from a dataset: pairs, faults, labels, repeats, and what to note of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from noisescope.datasets.adapters.compose import ends_with
from noisescope.datasets.adapters.labels import canonical
from noisescope.pairs import PICTURE, REJECTION_REASONS, Facts, Fault, Pair

if TYPE_CHECKING:
    import pyarrow as pa

_EXAMPLES = 5
#: Distinct labels that are counted.
_LABELS = 50
_TEMPLATE = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]|<\|user\|>|<\|assistant\|>"
    r"|<\|system\|>|<\|User\|>|<" + "\uff5cUser\uff5c>"
)


@final
@dataclass
class Tally:
    """Counts kept while rows stream by."""

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[Fault] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    ordered: int = 0
    first_chosen: int = 0
    contradicted: int = 0
    copied: Counter[str] = field(default_factory=Counter)

    def pairs(self, outcomes: Iterable[Pair | Fault]) -> Iterator[Pair]:
        """Pass pairs on; count orders of sides, faults by reason, and keep the first five."""
        for outcome in outcomes:
            if isinstance(outcome, Pair):
                self.ordered += outcome.first is not None
                self.first_chosen += outcome.first is True
                self.contradicted += outcome.contradicted
                for side in ("chosen", "rejected"):
                    self.copied[side] += ends_with(outcome.prompt, getattr(outcome, side))
                yield outcome
                continue
            self.rejected[outcome.reason] += 1
            if len(self.examples) < _EXAMPLES:
                self.examples.append(outcome)

    def count_label(self, found: Any) -> None:
        """Count a value of the column that names the better side."""
        text = "" if found is None or found != found else canonical(found)[:40]
        if text in self.labels or len(self.labels) < _LABELS:
            self.labels[text] += 1

    def facts(self, table: pa.Table) -> Facts:
        """What was seen, with the repeats that the finished table holds."""
        order = {reason: place for place, reason in enumerate(REJECTION_REASONS)}
        counts = sorted(self.rejected.items(), key=lambda item: order.get(item[0], len(order)))
        return Facts(
            rows=self.rows,
            pairs=table.num_rows,
            rejected=dict(counts),
            examples=tuple(self.examples),
            duplicates=table.num_rows - _distinct(table, "content_id", "direction"),
            contradictions=_both_ways(table, "content_id"),
            self_contradictions=_both_ways(table, "content_id", "annotator"),
            annotators=len(table["annotator"].unique().drop_null()),
            ordered=self.ordered,
            first_chosen=self.first_chosen,
            contradicted=self.contradicted,
            labels=dict(self.labels.most_common()),
            notes=tuple(_notes(table, self.contradicted, self.copied)),
        )


#: Share of the pairs, labelled by several annotators, from which their votes are worth counting.
_VOTED = 0.05


def _notes(table: pa.Table, contradicted: int, copied: Counter[str]) -> Iterator[str]:
    """What a user should know of pairs that were read, in a sentence each."""
    import numpy as np
    import pyarrow.compute as pc

    from noisescope.datasets.numbers import other_votes

    voted = int(np.isfinite(other_votes(table)).sum())
    if voted > _VOTED * table.num_rows:
        yield (
            f"{voted:,} of {table.num_rows:,} labels are of pairs that other annotators labelled "
            "too: --evidence votes also counts what the others chose"
        )

    if contradicted:
        share = contradicted / max(table.num_rows, 1)
        yield (
            f"in {contradicted:,} of {table.num_rows:,} pairs ({share:.0%}) the dataset's own "
            "scores contradict the label: the chosen side has the lower score"
        )
    if copied.total():
        yield (
            f"{copied.total():,} responses copy the end of their prompt word for word "
            f"({copied['chosen']:,} chosen, {copied['rejected']:,} rejected): read as answers that "
            "change nothing"
        )
    shown = pc.sum(pc.match_substring_regex(table["prompt"], PICTURE.pattern)).as_py() or 0
    if 0 < shown < table.num_rows:
        yield f"{table.num_rows - shown:,} of {table.num_rows:,} prompts show no picture"
    plain = table.filter(table["turns"].is_null()) if table["turns"].null_count else table[:0]
    for name in ("prompt", "chosen"):
        if not plain.num_rows:
            break
        held = pc.match_substring_regex(plain[name], _TEMPLATE.pattern)
        count = pc.sum(held).as_py() or 0
        if count:
            text = plain[name].filter(held)[0].as_py()
            found = _TEMPLATE.search(text)
            yield (
                f"{count:,} {name} texts hold chat-template text already "
                f"({found[0] if found else ''}), which the model's own template would wrap a "
                "second time: give them as messages with role and content, or score them as they "
                "are with --chat-template never"
            )
            break


def repeated_ids(table: pa.Table, path: str) -> Iterator[str]:
    """Yield a note on the pairs whose own id is that of an earlier pair (`pairs.unused`)."""
    import pyarrow.compute as pc

    ids = table["pair_id"]
    stated = pc.replace_substring_regex(ids, r"~[0-9]+$", "")
    count = pc.sum(pc.and_(pc.not_equal(ids, stated), pc.is_in(stated, ids))).as_py() or 0
    if count:
        yield (
            f"{count:,} of {table.num_rows:,} pairs repeat the id of an earlier one ({path}), so "
            "that theirs ends in ~2, ~3 and so on; a truth file must name them so"
        )


def _distinct(table: pa.Table, *columns: str) -> int:
    """How many different rows these columns hold; `direction` is which side was chosen."""
    import pyarrow.compute as pc

    with_direction = table.append_column("direction", pc.less(table["chosen"], table["rejected"]))
    return int(with_direction.select(columns).group_by(list(columns)).aggregate([]).num_rows)


def _both_ways(table: pa.Table, *columns: str) -> int:
    """How many values of `columns` (those without nulls) occur in both directions."""
    known = table.filter(table["annotator"].is_valid()) if "annotator" in columns else table
    return _distinct(known, *columns, "direction") - _distinct(known, *columns)
