"""What shards computed of responses, brought together: features, or scores of adapters.

    collect_parts(run, plan, table, sources, records, faults, reporter)

Parts of other models, and damaged ones, are named and not copied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from noisescope.errors import RunError
from noisescope.gathering import Reporter
from noisescope.parts import Part, check, fitting, missing, scan
from noisescope.places import Place
from noisescope.plan import Plan
from noisescope.responses import KINDS, parts_of
from noisescope.run import Run
from noisescope.shards import Record
from noisescope.sharing import share_of
from noisescope.storage import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.pairs import Item

#: What a part in the cache is called; nothing else is copied.
PART_NAME = re.compile(r"[0-9a-f]{20}\.safetensors")


def collect_parts(
    run: Run,
    plan: Plan,
    table: pa.Table,
    sources: Sequence[Place],
    records: Sequence[Record],
    faults: Sequence[str],
    reporter: Reporter,
) -> None:
    """Copy the parts that `run`'s cache lacks from those beside the run directories `sources`.

    `faults` are what else was found wrong. Raises RunError naming the shards whose responses have
    no part, and the commands that compute them; what was copied is kept.
    """
    from noisescope.policies.items import distinct_items

    items = distinct_items(table)[0]
    place, model = parts_of(plan)
    cache = run.directory.parent / place
    parts, faulty = scan(cache, model)
    faults = [*(f"{path} is {fault}" for path, fault in faulty.items()), *faults]
    wanted = {item.key for item in missing(items, parts)}
    copied = 0
    for source in sources:
        theirs = source.parent / place.as_posix()
        if not theirs.is_at(cache):
            copied += _copy(theirs, cache, model, wanted, faults)
    if copied:
        reporter.note(f"{copied:,} parts copied to {cache}")
    for fault in faults:
        reporter.note(f"not used: {fault}")
    if wanted:
        lost, what = [item for item in items if item.key in wanted], KINDS[plan.evidence["kind"]]
        raise _incomplete(lost, items, records, faults, what)


def _copy(source: Place, cache: Path, model: str, wanted: set[str], faults: list[str]) -> int:
    """Copy sound parts that hold `wanted` keys, which are then struck off; how many."""
    copied = 0
    for path in source.files():
        if not wanted or not PART_NAME.fullmatch(path.name):
            continue
        target = cache / path.name
        content = path.read()
        part = fitting(check(target, content), model)
        if not isinstance(part, Part):
            faults.append(f"{path} is {part}")
        elif wanted & set(part.keys):
            write_atomic(target, content)
            wanted.difference_update(part.keys)
            copied += 1
    return copied


def _incomplete(
    lost: Sequence[Item],
    items: Sequence[Item],
    records: Sequence[Record],
    faults: Sequence[str],
    what: str,
) -> RunError:
    """What is missing, shard by shard, and the commands that compute it."""
    newest = max(records, key=lambda record: record.shard.of)
    done = {record.shard.index for record in records if record.shard.of == newest.shard.of}
    counts: dict[int, int] = {}
    for item in lost:
        index = share_of(item, newest.cuts) + 1
        counts[index] = counts.get(index, 0) + 1
    shards = [
        f"shard {index}/{newest.shard.of} ({count:,} responses, "
        f"{'its parts are not here, or damaged' if index in done else 'not computed'})"
        for index, count in sorted(counts.items())
    ]
    commands = "\n".join(f"  {newest.command(index)}" for index in sorted(counts))
    said = f"{len(lost):,} of {len(items):,} responses have no {what}: {', '.join(shards)}"
    return RunError(
        "; ".join([said, *faults]),
        hint=f"Compute what is missing, then merge again:\n{commands}",
    )
