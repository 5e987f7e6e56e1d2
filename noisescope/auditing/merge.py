"""Merge the shards of an audit into its finished run: `noisescope merge`.

    merge(["runs"])                                  # shards on one shared file system
    merge(["from-a/runs", "s3://bucket/runs"], ...)  # shards of several machines, copied here

A source is a run directory that shards wrote, or a directory of runs, local or anything fsspec
reads. Damaged files and those of other models are refused by name, and missing shards are listed
with the commands that compute them. No model is needed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from noisescope.auditing.audit import Audit, FineTuned, record_margins, score_margins, work_of
from noisescope.auditing.shards import FOLDER, Record, read_record
from noisescope.errors import RunError, first_five
from noisescope.progress import Reporter, Silent, Stopwatch
from noisescope.replicas.gather import KINDS, Work
from noisescope.storage.checksums import verified
from noisescope.storage.files import write_atomic
from noisescope.storage.remote import Place, place_of
from noisescope.storage.run import FORMAT, Plan, Run, open_run

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.scoring.score import ScoreConfig

#: A fingerprint, which becomes part of paths here.
PRINT = re.compile(r"[0-9a-f]{20}")
#: More replicas than a column of margins can number.
MOST_REPLICAS = 1 << 15


@final
@dataclass(frozen=True)
class Sharded:
    """A run directory with records of shards."""

    place: Place
    plan: Plan
    records: tuple[Record, ...]
    faults: tuple[str, ...] = field(default=())


def merge(
    sources: Sequence[str],
    *,
    score: ScoreConfig | None = None,
    runs_directory: Path = Path("runs"),
    run_directory: Path | None = None,
    reporter: Reporter | None = None,
) -> Audit:
    """The finished run of the shards in `sources`, the same as one process makes.

    A single local source is completed in place, unless `run_directory` names another directory.
    Raises RunError naming every shard that is missing or belongs to a different audit; what was
    copied is kept.
    """
    reporter = reporter or Silent()
    found = [sharded for source in sources for sharded in find_shards(source)]
    plan, records = _one_audit(found)
    local = found[0].place.local if len(found) == 1 else None
    with open_run(runs_directory, plan, run_directory or local) as run:
        for name in run.drop_damaged():
            reporter.note(f"{run.directory / name} is damaged: making it again")
        work = work_of(run, plan, _pairs(run, plan, found))
        tuned = FineTuned(run, plan, True)
        if not run.evidence_complete:
            watch = Stopwatch()
            _collect(work, found, records, reporter)
            training = work.write_margins(records[0].facts, reporter, watch)
            tuned = record_margins(run, plan, records[0].origin, training, watch)
        return score_margins(tuned, records[0].origin, score, reporter)


def _collect(
    work: Work, found: Sequence[Sharded], records: Sequence[Record], reporter: Reporter
) -> None:
    """Copy what `work` is missing from the sources.

    Every file is checked first. Raises RunError naming the missing shards and the commands that
    compute them; what was copied is kept.
    """
    copied, faults = work.copy_missing([one.place for one in found])
    if copied:
        reporter.note(f"{copied:,} {work.files} copied to {work.directory}")
    faults += [fault for one in found for fault in one.faults]
    for fault in faults:
        reporter.note(f"not used: {fault}")
    missing = work.missing()
    if not missing:
        return
    newest = max(records, key=lambda record: record.share.of)
    of = newest.share.of
    done = {record.share.index for record in records if record.share.of == of}
    by_share: dict[int, list[int]] = {}
    for unit in missing:
        by_share.setdefault(work.share_of(unit, of, newest.cuts), []).append(unit)
    shards = [
        f"shard {index + 1}/{of} ({work.describe(units)}, "
        f"{'not here, or damaged' if index in done else 'not computed'})"
        for index, units in sorted(by_share.items())
    ]
    lost = f"{len(missing):,} of {len(work):,} {work.unit} {work.without}: {', '.join(shards)}"
    commands = "\n".join(f"  {newest.command(index)}" for index in sorted(by_share))
    raise RunError(
        "; ".join([lost, *faults]),
        hint=f"Compute what is missing, then merge again:\n{commands}",
    )


def find_shards(source: str) -> list[Sharded]:
    """Run directories with records of shards: `source` itself, or those in it.

    Raises RunError if there is none, or if several audits are mixed.
    """
    place = place_of(source)
    places = [place] if (place / "plan.json").is_file() else place.folders()
    found = [_sharded(one) for one in places if (one / "plan.json").is_file()]
    found = [one for one in found if one.records or one.faults]
    if not found:
        raise RunError(
            f"no shards in {source}",
            hint="Name the run directory that `noisescope score --shard 1/8 ...` printed, or the "
            "directory it is in.",
        )
    if _plans(found) > 1:  # ignore those that are merged already
        found = [one for one in found if not (one.place / "manifest.json").is_file()] or found
    if _plans(found) > 1:
        names = first_five([str(one.place) for one in found])
        raise RunError(
            f"{source} has shards of several audits: {names}",
            hint=f"Name one of them: noisescope merge {found[-1].place}",
        )
    return found


def _plans(found: Sequence[Sharded]) -> int:
    """The number of different audits."""
    return len({one.plan.fingerprint for one in found})


def _sharded(place: Place) -> Sharded:
    plan = _plan_of(place / "plan.json")
    records: list[Record] = []
    faults: list[str] = []
    for path in (place / FOLDER).files():
        if not path.name.endswith(".json") or path.name.startswith("."):
            continue
        try:
            record = read_record(Path(str(path)), path.read())
        except RunError as error:
            faults.append(error.message)
            continue
        if record.plan != plan.fingerprint:
            raise RunError(f"{path} belongs to another audit than {place / 'plan.json'}")
        records.append(record)
    return Sharded(place, plan, tuple(records), tuple(faults))


def _plan_of(path: Place) -> Plan:
    """The plan in a file. Raises RunError if damaged: it becomes file names here."""
    hint = "Copy the run directory again, or run one shard's command again."
    try:
        content = verified(json.loads(path.read()), Path(str(path)), hint)
        plan = Plan.from_json(content)
        known = content["format"] == FORMAT and plan.evidence["kind"] in KINDS
        known = known and plan.evidence["replicas"] in range(1, MOST_REPLICAS)
        prints = (plan.dataset_fingerprint, plan.model_fingerprint)
        if (
            known
            and plan.fingerprint == content["fingerprint"]
            and all(map(PRINT.fullmatch, prints))
        ):
            return plan
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged", hint=hint) from error
    raise RunError(f"{path} is damaged, or from another version of noisescope", hint=hint)


def _one_audit(found: Sequence[Sharded]) -> tuple[Plan, list[Record]]:
    """The plan all sources share, and their records. Raises RunError naming what differs."""
    first = found[0]
    for other in found[1:]:
        if other.plan.fingerprint == first.plan.fingerprint:
            continue
        mine, theirs = first.plan.to_json(), other.plan.to_json()
        parts = [key for key in mine if key != "fingerprint" and mine[key] != theirs[key]]
        raise RunError(
            f"{other.place} has shards of a different audit than {first.place}: "
            f"{', '.join(parts)} differ",
            hint="Merge shards of one dataset, one model and the same options.",
        )
    records = [record for one in found for record in one.records]
    if not records:
        raise RunError(
            "the records of all shards are damaged: "
            f"{first_five([fault for one in found for fault in one.faults])}",
            hint="Run one shard's command again; what it computed is kept.",
        )
    return first.plan, records


def _pairs(run: Run, plan: Plan, found: Sequence[Sharded]) -> pa.Table:
    """The pairs, copied to `run` if it has none. Raises RunError if they are not the plan's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from noisescope.pairs import dataset_fingerprint

    faults = []
    for place in (place_of(str(run.directory)), *(one.place for one in found)):
        path = place / "pairs.parquet"
        if not path.is_file():
            continue
        content = path.read()
        try:
            table = pq.read_table(io.BytesIO(content))
            if dataset_fingerprint(table) == plan.dataset_fingerprint:
                if not place.is_at(run.directory):
                    write_atomic(run.pairs_path, content)
                return table
        except (pa.ArrowException, OSError, KeyError):
            pass
        faults.append(f"{path} is damaged, or of a different dataset")
    raise RunError(
        "; ".join(faults) or f"no pairs.parquet in {found[0].place}",
        hint="Run one shard's command again: it writes a missing pairs.parquet.",
    )
