"""LoRA replicas that shards trained, brought together: `merging.merge` for `--kind lora`.

members = collect_members(run, plan, sources, records, reporter)
facts = assemble(run, table, members)
"""

from __future__ import annotations

from collections.abc import Sequence

from noisescope.errors import RunError
from noisescope.gathering import Reporter
from noisescope.members import FOLDER, Member, copy_member, finished, read_member
from noisescope.places import Place
from noisescope.plan import Plan
from noisescope.run import Run
from noisescope.shards import Record


def collect_members(
    run: Run,
    plan: Plan,
    sources: Sequence[Place],
    records: Sequence[Record],
    faults: Sequence[str],
    reporter: Reporter,
) -> list[Member]:
    """All replicas of `plan`, those that `run` lacks copied from the run directories `sources`.

    Every file is checked before it counts; `faults` are what else was found wrong. Raises
    RunError naming the replicas that are missing, their shards and the commands that train them;
    what was copied is kept.
    """
    count = int(plan.evidence["replicas"])
    known, damaged = finished(run, plan.fingerprint, count)
    faults, copied = [*faults, *damaged.values()], 0
    for place in sources:
        if place.is_at(run.directory):
            continue
        for number in set(range(count)) - set(known):
            found = read_member(place / FOLDER / str(number), plan.fingerprint, number)
            if isinstance(found, str):
                faults.append(found)
            elif found is not None:
                try:
                    known[number] = copy_member(found, run)
                    copied += 1
                except RunError as error:
                    faults.append(error.message)
    if copied:
        reporter.note(f"{copied:,} replicas copied to {run.directory / FOLDER}")
    for fault in faults:
        reporter.note(f"not used: {fault}")
    if lost := sorted(set(range(count)) - set(known)):
        raise _incomplete(lost, count, records, faults)
    return [known[number] for number in range(count)]


def _incomplete(
    lost: Sequence[int], count: int, records: Sequence[Record], faults: Sequence[str]
) -> RunError:
    """Which replicas are missing, shard by shard, and the commands that train them."""
    newest = max(records, key=lambda record: record.shard.of)
    done = {record.shard.index for record in records if record.shard.of == newest.shard.of}
    shards: dict[int, list[int]] = {}
    for number in lost:
        shards.setdefault(number % newest.shard.of + 1, []).append(number)
    told = [
        f"shard {index}/{newest.shard.of} (replica {', '.join(map(str, numbers))}, "
        f"{'not here, or damaged' if index in done else 'not trained'})"
        for index, numbers in sorted(shards.items())
    ]
    commands = "\n".join(f"  {newest.command(index)}" for index in sorted(shards))
    said = f"{len(lost):,} of {count:,} replicas are missing: {', '.join(told)}"
    return RunError(
        "; ".join([said, *faults]),
        hint=f"Train what is missing, then merge again:\n{commands}",
    )
