"""Replicas trained apart, one folder each, and the run they make together.

    runs/<run>/members/<m>/margins/part-*.parquet, averages/, replicas/<m>/, done.json

    conclude(directory, plan, 3, facts)              # replica 3 is whole: its checksums
    read_member(place, plan, 3)                      # a Member, or what is wrong with it
    assemble(run, table, members)                    # margins and adapters as of one process

A replica's seed and its half of the pairs depend on its number alone, so who trains it, and
beside which others, does not matter. No torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.scoring.margins import write_margins
from noisescope.storage.checksums import seal, unsealed
from noisescope.storage.files import write_atomic
from noisescope.storage.remote import Place, place_of
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

#: Folder of a run in which replicas are trained apart.
FOLDER = "members"
#: A replica's record, written last.
DONE = "done.json"
FORMAT = 1
#: What a replica's folder may hold; nothing else is read or copied. `1` is its own number.
NAMES = re.compile(
    r"(?:margins|averages)/part-\d{6,9}\.parquet"
    r"|replicas/(\d{1,5})/(?:ema-[\d.]{1,12}/)?"
    r"(?:adapter_model\.safetensors|adapter_config\.json|pytorch_lora_weights\.safetensors)"
)
PARTS = ("margins", "averages")


@final
@dataclass(frozen=True)
class Member:
    """A finished replica: where its files are, their SHA-256, what its training did."""

    number: int
    place: Place
    files: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def content(self, name: str) -> bytes:
        """A file's bytes. Raises RunError where they are not those that were written."""
        path = self.place
        for part in name.split("/"):
            path = path / part
        try:
            content = path.read()
        except FileNotFoundError:
            raise RunError(f"{path} is gone") from None
        if hashlib.sha256(content).hexdigest() != self.files[name]:
            raise RunError(f"{path} is damaged: its checksum differs")
        return content

    def named(self, folder: str) -> list[str]:
        """Its files below `folder`, in order."""
        return sorted(name for name in self.files if name.startswith(f"{folder}/"))


def member_directory(run: Run, number: int) -> Path:
    """Where replica `number` is trained apart from the others."""
    return run.directory / FOLDER / str(number)


def conclude(directory: Path, plan: str, number: int, facts: Mapping[str, Any]) -> None:
    """Record that a replica of the run with fingerprint `plan` is whole."""
    names = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    files = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if _own(name, number)
    }
    content = {"format": FORMAT, "plan": plan, "member": number, "files": files}
    text = json.dumps(seal(content | {"facts": dict(facts)}), indent=2) + "\n"
    write_atomic(directory / DONE, text)


def _own(name: str, number: int) -> bool:
    """Whether `name` is a file that replica `number` may have."""
    found = NAMES.fullmatch(name)
    return found is not None and found[1] in (None, str(number))


def read_member(place: Place, plan: str, number: int) -> Member | str | None:
    """Replica `number` in its folder `place`; None where it is not finished, or what is wrong.

    Only its record is read; `Member.content` checks each file as it is used.
    """
    path = place / DONE
    if not path.is_file():
        return None
    try:
        content = unsealed(json.loads(path.read()), Path(str(path)), "")
        files, facts = dict(content["files"]), dict(content["facts"])
        if content["format"] != FORMAT:
            return f"{path} is of another version of noisescope"
        if (content["plan"], content["member"]) != (plan, number):
            return f"{path} is of another audit"
        whole = all(_own(name, number) for name in files)
        whole = whole and any(name.startswith("margins/") for name in files)
    except (RunError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path} is damaged"
    return Member(number, place, files, facts) if whole else f"{path} is damaged"


def finished(run: Run, plan: str, count: int) -> tuple[dict[int, Member], dict[int, str]]:
    """The sound replicas among `count` of a run, every file of theirs read; what is wrong with
    others, by number."""
    found, faults = {}, {}
    for number in range(count):
        member = read_member(place_of(str(member_directory(run, number))), plan, number)
        try:
            if isinstance(member, str):
                raise RunError(member)
            if member is not None:
                for name in member.files:
                    member.content(name)
                found[number] = member
        except RunError as error:
            faults[number] = error.message
    return found, faults


def copy_member(member: Member, run: Run) -> Member:
    """Its files in `run`'s own folder, the record last. Raises RunError for a damaged one."""
    target = member_directory(run, member.number)
    contents = {name: member.content(name) for name in member.files}
    for name, content in contents.items():
        write_atomic(target / name, content)
    write_atomic(target / DONE, (member.place / DONE).read())
    return Member(member.number, place_of(str(target)), member.files, member.facts)


def assemble(run: Run, table: pa.Table, members: Sequence[Member]) -> dict[str, Any]:
    """Write the margins and adapters that one process would; what its training would say it did.

    Raises RunError naming a file that is damaged, or not of the pairs of `table`.
    """
    facts, ids = dict(members[0].facts), table.column("pair_id")
    for member in members:
        for name in member.named("replicas"):
            write_atomic(run.directory / name, member.content(name))
    losses: dict[int, float] = {}
    for folder in PARTS:
        names = members[0].named(folder)
        for member in members:
            if member.named(folder) != names:
                raise RunError(f"{member.place} holds other checkpoints than {members[0].place}")
        for name in names:
            margins, held, step = _together(members, name, ids)
            write_margins(run.directory / name, ids, margins[:, None], steps=[step], held_out=held)
            if folder == "margins":
                losses[step] = _held_out_loss(margins, held)
    if "held_out_loss" in facts:
        best = min(losses, key=lambda step: losses[step])
        facts |= {"held_out_loss": losses, "best_step": best}
    return facts


def _held_out_loss(margins: NDArray[np.float32], held: NDArray[np.bool_]) -> float:
    """Mean of -log sigma(margin) over held-out (replica, pair) cells."""
    return float(np.logaddexp(0.0, -margins[held]).mean())


def _together(
    members: Sequence[Member], name: str, ids: pa.ChunkedArray
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Margins [M, N] and held_out [M, N] of all members' part `name`, and its step."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[NDArray[np.float32]] = []
    held: list[NDArray[np.bool_]] = []
    step = int(name.rpartition("-")[2].removesuffix(".parquet"))
    for member in members:
        try:
            part = pq.read_table(io.BytesIO(member.content(name)))
            count, rest = divmod(part.num_rows, len(ids))
            first = count * member.number
            known = pa.chunked_array([chunk for _ in range(count) for chunk in ids.chunks])
            numbers = np.repeat(np.arange(first, first + count), len(ids))
            fits = rest == 0 and count > 0 and part["pair_id"].equals(known)
            fits = fits and np.array_equal(part["replica"].to_numpy(), numbers)
            if not (fits and set(part["step"].unique().to_pylist()) == {step}):
                raise RunError(f"{member.place / name} is of other pairs than the run's")
            rows += list(part["margin"].to_numpy().reshape(count, -1))
            held += list(part["held_out"].to_numpy().reshape(count, -1))
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise RunError(f"{member.place / name} cannot be read: {error}") from error
    return np.stack(rows).astype(np.float32), np.stack(held).astype(bool), step
