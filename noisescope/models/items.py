"""A pairs table as the models see it: distinct (prompt, response) items, and who meets whom.

items, chosen, rejected = distinct_items(dataset.table)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisescope.models import Item
from noisescope.pairs import Message, response_key

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


def distinct_items(table: pa.Table) -> tuple[list[Item], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct (prompt, response) of a pairs table, and each pair's two rows among them, [N]."""
    import numpy as np

    items: list[Item] = []
    rows: dict[str, int] = {}
    sides = np.empty((2, table.num_rows), np.int64)
    columns = (table.column(name).to_pylist() for name in ("prompt", "turns", "chosen", "rejected"))
    for index, (prompt, turns, *responses) in enumerate(zip(*columns, strict=True)):
        for side, response in enumerate(responses):
            key = response_key(prompt, response)
            row = rows.setdefault(key, len(items))
            if row == len(items):
                messages = turns and tuple(Message(t["role"], t["content"]) for t in turns)
                items.append(Item(key, prompt, messages or None, response))
            sides[side, index] = row
    return items, sides[0], sides[1]


def fold_keys(table: pa.Table) -> NDArray[np.uint64]:
    """uint64 of each pair's content id, [N]: repeats of a pair share a fold."""
    import numpy as np

    return np.array(
        [int(key[:16], 16) for key in table.column("content_id").to_pylist()], np.uint64
    )
