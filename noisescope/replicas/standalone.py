"""Replicas that ranks and shards train one by one, and the run assembled from them.

    runs/<run>/members/<m>/margins/part-*.parquet, averages/, replicas/<m>/, done.json

    conclude(directory, plan, 3, facts)              # record that replica 3 is complete
    read_member(place, plan, 3)                      # a Member, or what is wrong with it
    assemble(run, table, members)                    # margins and adapters as of one process

A replica's seed and its half of the pairs depend on its number alone, so it does not matter which
process trains it. Does not import torch.
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
from noisescope.replicas.checkpoints import held_out_loss
from noisescope.scoring.margins import write_margins
from noisescope.storage.checksums import file_digest, verified, with_checksum
from noisescope.storage.files import write_atomic
from noisescope.storage.remote import Place, place_of
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

#: Folder of a run with the replicas that were trained one by one.
FOLDER = "members"
#: A replica's record, written last.
DONE = "done.json"
FORMAT = 1
#: Files that a replica's folder may contain; no other is read or copied. Group 1 is its number.
NAMES = re.compile(
    r"(?:margins|averages)/part-\d{6,9}\.parquet"
    r"|replicas/(\d{1,5})/(?:ema-[\d.]{1,12}/)?"
    r"(?:adapter_model\.safetensors|adapter_config\.json|pytorch_lora_weights\.safetensors)"
)
PARTS = ("margins", "averages")


@final
@dataclass(frozen=True)
class Member:
    """A finished replica: its directory, the SHA-256 of its files, facts of its training."""

    number: int
    place: Place
    files: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def content(self, name: str) -> bytes:
        """A file's bytes. Raises RunError if it is missing or damaged."""
        path = self._file(name)
        try:
            content = path.read()
        except FileNotFoundError:
            raise RunError(f"{path} is gone") from None
        if hashlib.sha256(content).hexdigest() != self.files[name]:
            raise RunError(f"{path} is damaged: its checksum differs")
        return content

    def verify(self) -> None:
        """Raise RunError if one of its files, on this machine, is missing or damaged."""
        for name, digest in self.files.items():
            path = self._file(name)
            if path.local is None or not path.local.is_file():
                raise RunError(f"{path} is gone")
            if file_digest(path.local) != digest:
                raise RunError(f"{path} is damaged: its checksum differs")

    def _file(self, name: str) -> Place:
        path = self.place
        for part in name.split("/"):
            path = path / part
        return path

    def named(self, folder: str) -> list[str]:
        """Names of its files below `folder`, in order."""
        return sorted(name for name in self.files if name.startswith(f"{folder}/"))


def member_directory(run: Run, number: int) -> Path:
    """The folder of replica `number`."""
    return run.directory / FOLDER / str(number)


def conclude(directory: Path, plan: str, number: int, facts: Mapping[str, Any]) -> None:
    """Record that a replica of the run with fingerprint `plan` is complete."""
    names = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    files = {name: file_digest(path) for name, path in names.items() if _own(name, number)}
    content = {"format": FORMAT, "plan": plan, "member": number, "files": files}
    text = json.dumps(with_checksum(content | {"facts": dict(facts)}), indent=2) + "\n"
    write_atomic(directory / DONE, text)


def _own(name: str, number: int) -> bool:
    """Whether `name` is a file that replica `number` may have."""
    found = NAMES.fullmatch(name)
    return found is not None and found[1] in (None, str(number))


def read_member(place: Place, plan: str, number: int) -> Member | str | None:
    """Replica `number` in its folder `place`; None if it is not finished, or what is wrong.

    Only its record is read; `Member.content` checks each file when it is used.
    """
    path = place / DONE
    if not path.is_file():
        return None
    try:
        content = verified(json.loads(path.read()), Path(str(path)), "")
        files, facts = dict(content["files"]), dict(content["facts"])
        if content["format"] != FORMAT:
            return f"{path} is from another version of noisescope"
        if (content["plan"], content["member"]) != (plan, number):
            return f"{path} belongs to another audit"
        whole = all(_own(name, number) for name in files)
        whole = whole and any(name.startswith("margins/") for name in files)
    except (RunError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path} is damaged"
    return Member(number, place, files, facts) if whole else f"{path} is damaged"


def finished(run: Run, plan: str, count: int) -> tuple[dict[int, Member], dict[int, str]]:
    """The sound replicas among `count` of a run, every file checked; faults of the others, by
    number."""
    found, faults = {}, {}
    for number in range(count):
        member = read_member(place_of(str(member_directory(run, number))), plan, number)
        try:
            if isinstance(member, str):
                raise RunError(member)
            if member is not None:
                member.verify()
                found[number] = member
        except RunError as error:
            faults[number] = error.message
    return found, faults


def copy_member(member: Member, run: Run) -> Member:
    """Copy a replica's files into `run`, its record last. Raises RunError if one is damaged."""
    target = member_directory(run, member.number)
    contents = {name: member.content(name) for name in member.files}
    for name, content in contents.items():
        write_atomic(target / name, content)
    write_atomic(target / DONE, (member.place / DONE).read())
    return Member(member.number, place_of(str(target)), member.files, member.facts)


def assemble(run: Run, table: pa.Table, members: Sequence[Member]) -> dict[str, Any]:
    """Write the margins and adapters that one process would write; facts of its training.

    Raises RunError naming a file that is damaged, or does not belong to the pairs of `table`.
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
                raise RunError(f"{member.place} has other checkpoints than {members[0].place}")
        for name in names:
            margins, held, step = _together(members, name, ids)
            write_margins(run.directory / name, ids, margins[:, None], steps=[step], held_out=held)
            if folder == "margins":
                losses[step] = held_out_loss(margins, held)
    if "held_out_loss" in facts:
        best = min(losses, key=lambda step: losses[step])
        facts |= {"held_out_loss": losses, "best_step": best}
    return facts


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
                raise RunError(f"{member.place / name} has margins of other pairs")
            rows += list(part["margin"].to_numpy().reshape(count, -1))
            held += list(part["held_out"].to_numpy().reshape(count, -1))
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise RunError(f"{member.place / name} cannot be read: {error}") from error
    return np.stack(rows).astype(np.float32), np.stack(held).astype(bool), step
