"""Set aside the pairs that a model cannot judge, before anything is computed.

    dataset = judged_by(policy, dataset)

Two reasons: the chat template does not render a side as it is (`rendering.py`), or both sides are
the same once cut to --max-length. They are counted as rejected rows, with the first few named,
and not in pairs.parquet: a margin of 0 would read as a pair on which people split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from noisescope.datasets.checks import FEWEST_PAIRS
from noisescope.errors import DataError
from noisescope.models import Policy
from noisescope.models.items import distinct_items
from noisescope.pairs import SAME_ONCE_CUT, Fault, PreferenceDataset, dataset_fingerprint

if TYPE_CHECKING:
    from noisescope.models.rendering import Unreadable
    from noisescope.models.tokenize import Encoded

_EXAMPLES = 5


def judged_by(
    policy: Policy, dataset: PreferenceDataset, *, keep_same: bool = False
) -> PreferenceDataset:
    """The pairs of `dataset` that `policy` can judge, with notes on what was cut.

    `keep_same` keeps pairs whose sides are the same once cut (a training sets them aside itself).
    Raises DataError if fewer than ten pairs are left. A second call changes nothing.
    """
    from noisescope.models.causal_lm import CausalLMPolicy
    from noisescope.models.tokenize import Encoded

    mark = policy.identity.fingerprint
    if not isinstance(policy, CausalLMPolicy) or dataset.facts.judged_by == mark:
        return dataset
    items, *columns = distinct_items(dataset.table)
    sides = [column.tolist() for column in columns]
    found = policy.encoder.encode_readable(items)
    refused = {row: str(why) for row, why in _first_faults(found, sides).items()}
    same: dict[int, str] = {}
    if not keep_same:
        limit = policy.encoder.max_length
        rows = zip(*sides, strict=True)
        why = f"both sides are the same within --max-length {limit}"
        same = {row: why for row, (w, r) in enumerate(rows) if _alike(found[w], found[r])}
    kept = _without(dataset, refused, same)
    known = {place: one for place, one in enumerate(found) if isinstance(one, Encoded)}
    own = policy.notes([items[place] for place in known], list(known.values()))
    notes = (*kept.facts.notes, *own)
    return replace(kept, facts=replace(kept.facts, notes=notes, judged_by=mark))


def _first_faults(
    found: Sequence[Encoded | Unreadable], sides: Sequence[Sequence[int]]
) -> dict[int, Unreadable]:
    """Why a pair cannot be rendered, by row; the chosen side's reason counts."""
    from noisescope.models.rendering import Unreadable

    faults: dict[int, Unreadable] = {}
    for side in sides:
        for row, item in enumerate(side):
            one = found[item]
            if isinstance(one, Unreadable):
                faults.setdefault(row, one)
    return faults


def _alike(one: Encoded | Unreadable, other: Encoded | Unreadable) -> bool:
    from noisescope.models.tokenize import Encoded

    if not isinstance(one, Encoded) or not isinstance(other, Encoded):
        return False
    return (one.prompt, one.response) == (other.prompt, other.response)


def _without(
    dataset: PreferenceDataset, refused: Mapping[int, str], same: Mapping[int, str]
) -> PreferenceDataset:
    """The dataset without some rows of its table, which are counted and named."""
    if not refused and not same:
        return dataset
    import numpy as np
    import pyarrow as pa

    cut = "Raise --max-length if they are too long, or reduce their pictures."
    text = "To judge them as plain text: --chat-template never."
    hints = {
        "unreadable": cut if dataset.modality == "vision" else text,
        SAME_ONCE_CUT: "Raise --max-length to include the difference.",
    }
    facts, total = dataset.facts, len(refused) + len(same)
    counts, examples, notes = dict(facts.rejected), list(facts.examples), list(facts.notes)
    for reason, faults in (("unreadable", refused), (SAME_ONCE_CUT, same)):
        if not faults:
            continue
        rows = sorted(faults)
        places = dataset.table.select(["source", "row"]).take(pa.array(rows)).to_pylist()
        named = [
            Fault(place["source"], place["row"], reason, faults[row])
            for place, row in zip(places, rows, strict=True)
        ]
        counts[reason] = counts.get(reason, 0) + len(faults)
        examples += named
        pairs = "1 pair is" if len(faults) == 1 else f"{len(faults):,} pairs are"
        place = f"{named[0].source}:{named[0].row + 1}"
        notes.append(f"{pairs} set aside, first {place}: {named[0].detail}. {hints[reason]}")
    kept = np.ones(len(dataset), bool)
    kept[[*refused, *same]] = False
    table = dataset.table.filter(pa.array(kept))
    if table.num_rows < FEWEST_PAIRS:
        raise DataError(
            f"{dataset.resolved}: {table.num_rows:,} of {len(dataset):,} pairs can be judged: "
            + "; ".join(map(str, examples[-_EXAMPLES:])),
            hint=hints["unreadable" if len(refused) > len(same) else SAME_ONCE_CUT],
        )
    return replace(
        dataset,
        table=table,
        fingerprint=dataset_fingerprint(table),
        facts=replace(
            facts,
            pairs=table.num_rows,
            rejected=counts,
            examples=tuple(examples[:_EXAMPLES]),
            set_aside=facts.set_aside + total,
            notes=tuple(notes),
            source_fingerprint=facts.source_fingerprint or dataset.fingerprint,
        ),
    )
