"""From the shards of an audit to its finished run: what `noisescope merge` calls.

    merge(["runs"])                                  # shards on a file system all of them share
    merge(["from-a/runs", "s3://bucket/runs"], ...)  # shards of several machines, copied here

A source is a run directory that shards wrote, or a directory of runs, local or anything fsspec
reads. Parts of other models, and damaged ones, are refused by name; so is a merge in which a
response has no features, or a replica was not trained, naming its shard and the command that
computes it. No model is needed.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.auditing.audit import Audit, FineTuned, judge, record_evidence
from noisescope.auditing.shards import FOLDER, Record, parts_of, read_record
from noisescope.auditing.shards import KINDS as RESPONSES
from noisescope.errors import RunError, first_five
from noisescope.progress import Reporter, Silent, Stopwatch
from noisescope.replicas.gather import KINDS, EvidenceConfig, fit_cached
from noisescope.replicas.gather_adapters import margins_of_scores
from noisescope.replicas.partition import share_of
from noisescope.replicas.standalone import FOLDER as MEMBERS
from noisescope.replicas.standalone import Member, assemble, copy_member, finished, read_member
from noisescope.storage.cache import Part, check, fitting, missing, scan
from noisescope.storage.checksums import unsealed
from noisescope.storage.files import write_atomic
from noisescope.storage.remote import Place, place_of
from noisescope.storage.run import FORMAT, Plan, Run, open_run

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.pairs import Item
    from noisescope.scoring.score import ScoreConfig

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
    from noisescope.models.items import distinct_items

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
        lost, what = (
            [item for item in items if item.key in wanted],
            RESPONSES[plan.evidence["kind"]],
        )
        raise _missing_items(lost, items, records, faults, what)


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


def _missing_items(
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
            found = read_member(place / MEMBERS / str(number), plan.fingerprint, number)
            if isinstance(found, str):
                faults.append(found)
            elif found is not None:
                try:
                    known[number] = copy_member(found, run)
                    copied += 1
                except RunError as error:
                    faults.append(error.message)
    if copied:
        reporter.note(f"{copied:,} replicas copied to {run.directory / MEMBERS}")
    for fault in faults:
        reporter.note(f"not used: {fault}")
    if lost := sorted(set(range(count)) - set(known)):
        raise _missing_replicas(lost, count, records, faults)
    return [known[number] for number in range(count)]


def _missing_replicas(
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


PRINT = re.compile(r"[0-9a-f]{20}")
#: More replicas than a column of margins can number.
MOST_REPLICAS = 1 << 15


@final
@dataclass(frozen=True)
class Sharded:
    """A run directory in which shards left their records."""

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

    One local source is completed in place, unless `run_directory` says otherwise. Raises RunError
    naming every shard that is missing, or what is of another audit; nothing copied is lost.
    """
    reporter = reporter or Silent()
    found = [sharded for source in sources for sharded in find_shards(source)]
    plan, records = _one_audit(found)
    local = found[0].place.local if len(found) == 1 else None
    run = open_run(runs_directory, plan, run_directory or local)
    for name in run.drop_damaged():
        reporter.note(f"{run.directory / name} is damaged: making it again")
    table = _pairs(run, plan, found)
    tuned = FineTuned(run, plan, True)
    origin = records[0].origin
    if not run.evidence_complete:
        watch = Stopwatch()
        done = _evidence(run, plan, table, found, records, reporter, watch)
        tuned = record_evidence(run, plan, origin, done, watch)
    return judge(tuned, origin, score, reporter)


def _evidence(
    run: Run,
    plan: Plan,
    table: pa.Table,
    found: Sequence[Sharded],
    records: Sequence[Record],
    reporter: Reporter,
    watch: Stopwatch,
) -> dict[str, Any]:
    """Write `run`'s margins from what the shards left; what a manifest says of the training."""
    began, kind = time.perf_counter(), plan.evidence["kind"]
    places, faults = [one.place for one in found], [fault for one in found for fault in one.faults]
    if kind == "lora":
        members = collect_members(run, plan, places, records, faults, reporter)
        facts = assemble(run, table, members)
        shutil.rmtree(run.directory / "trunk", ignore_errors=True)
    else:
        collect_parts(run, plan, table, places, records, faults, reporter)
        if kind == "head":
            evidence, model = EvidenceConfig(**plan.evidence), plan.model_fingerprint
            return fit_cached(table, model, evidence, run, reporter, watch)
        margins_of_scores(table, plan, run)
        facts = dict(records[0].facts)
    watch.time("replicas", began)
    return facts


def find_shards(source: str) -> list[Sharded]:
    """Run directories with records of shards: `source` itself, or those in it.

    Raises RunError where there is none, or where several audits are mixed.
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
    if _plans(found) > 1:  # those that are merged already can be left aside
        found = [one for one in found if not (one.place / "manifest.json").is_file()] or found
    if _plans(found) > 1:
        names = first_five([str(one.place) for one in found])
        raise RunError(
            f"{source} holds shards of several audits: {names}",
            hint=f"Name one of them: noisescope merge {found[-1].place}",
        )
    return found


def _plans(found: Sequence[Sharded]) -> int:
    """How many audits the shards are of."""
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
            raise RunError(f"{path} is of another audit than {place / 'plan.json'}")
        records.append(record)
    return Sharded(place, plan, tuple(records), tuple(faults))


def _plan_of(path: Place) -> Plan:
    """The plan in a file. Raises RunError: what it says becomes names of files here."""
    hint = "Copy the run directory anew, or type one shard's command again."
    try:
        content = unsealed(json.loads(path.read()), Path(str(path)), hint)
        plan = Plan.of(content)
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
    raise RunError(f"{path} is damaged, or of another version of noisescope", hint=hint)


def _one_audit(found: Sequence[Sharded]) -> tuple[Plan, list[Record]]:
    """The plan all sources share, and their records. Raises RunError naming what differs."""
    first = found[0]
    for other in found[1:]:
        if other.plan.fingerprint == first.plan.fingerprint:
            continue
        mine, theirs = first.plan.to_json(), other.plan.to_json()
        parts = [key for key in mine if key != "fingerprint" and mine[key] != theirs[key]]
        raise RunError(
            f"{other.place} holds shards of another audit than {first.place}: "
            f"{', '.join(parts)} differ",
            hint="Merge shards of one dataset, one model and the same options.",
        )
    records = [record for one in found for record in one.records]
    if not records:
        raise RunError(
            f"no shard's record is whole: {first_five([f for one in found for f in one.faults])}",
            hint="Type one shard's command again; what it computed is kept.",
        )
    return first.plan, records


def _pairs(run: Run, plan: Plan, found: Sequence[Sharded]) -> pa.Table:
    """The pairs, copied to `run` where it has none. Raises RunError where they are others."""
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
        faults.append(f"{path} is damaged, or of another dataset")
    raise RunError(
        "; ".join(faults) or f"no pairs.parquet in {found[0].place}",
        hint="Type one shard's command again: it writes them anew where they are gone.",
    )
