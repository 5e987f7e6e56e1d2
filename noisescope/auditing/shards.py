"""Compute one share of an audit on its own: `score --shard`.

    compute_shard(dataset, policy, config, Share.parse("3/8"), command=...)

The run directory then contains its plan, its pairs and `shards/3-of-8.json`, which records the
boundaries of the shares and the command that computes one; cached chunks are beside the run, LoRA
replicas in a folder each. `merge.merge` makes a finished run of them. Shards need no communication
and take no lock.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from noisescope.auditing.audit import Job, Origin
from noisescope.auditing.ranks import World
from noisescope.errors import RunError, UsageError
from noisescope.models import Policy
from noisescope.pairs import PreferenceDataset
from noisescope.progress import Reporter
from noisescope.replicas.gather import EvidenceConfig, Worker
from noisescope.replicas.partition import Share
from noisescope.replicas.sources import REPLICAS
from noisescope.storage.checksums import verified, with_checksum
from noisescope.storage.files import write_atomic
from noisescope.storage.redact import without_secrets
from noisescope.storage.run import Run, create_run

#: Folder of a run directory with a record of each finished shard.
FOLDER = "shards"
FORMAT = 1


@final
@dataclass(frozen=True)
class Record:
    """The record of a finished shard; `plan` is the fingerprint of its run.

    `cuts` are the boundaries between the shares of responses; empty if replicas are divided.
    `facts` are what the manifest records of external adapters.
    """

    plan: str
    share: Share
    cuts: tuple[str, ...]
    origin: Origin
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its file under `FOLDER`."""
        return f"{self.share.index + 1}-of-{self.share.of}.json"

    def command(self, index: int) -> str:
        """The command line that computes share `index` (from 0)."""
        return f"{self.origin.command} --shard {Share(index, self.share.of)}"

    def text(self) -> str:
        """Contents of its file."""
        content = {"format": FORMAT, "plan": self.plan, "cuts": list(self.cuts)}
        content |= {"shard": {"index": self.share.index + 1, "of": self.share.of}}
        content |= {"origin": without_secrets(asdict(self.origin))}
        content |= {"facts": dict(self.facts)} if self.facts else {}
        return json.dumps(with_checksum(content), indent=2) + "\n"


def read_record(path: Path, text: str | bytes) -> Record:
    """The record in the `text` of a file. Raises RunError naming `path`."""
    damaged = RunError(f"{path} is damaged", hint="Run that shard again; finished work is reused.")
    try:
        content = json.loads(text)
        rest = verified(content, path, str(damaged.hint))
        if rest["format"] != FORMAT:
            raise RunError(
                f"{path} is in format {rest['format']}, this is format {FORMAT}", hint=damaged.hint
            )
        record = Record(
            str(rest["plan"]),
            Share(int(rest["shard"]["index"]) - 1, int(rest["shard"]["of"])),
            tuple(str(cut) for cut in rest["cuts"]),
            Origin(**rest["origin"]),
            dict(rest.get("facts", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error
    if record.name != path.name or len(record.cuts) not in (0, record.share.of - 1):
        raise damaged
    return record


@final
@dataclass(frozen=True)
class ShardDone:
    """A computed share: how many `unit` it has, and how many of them were computed now.

    `left` counts, by share, those that this machine does not have.
    """

    run: Run
    record: Record
    size: int
    computed: int
    left: Mapping[int, int]
    unit: str

    @property
    def next(self) -> str:
        """The command to run next: a share that is not here, or the merge."""
        for index in self.left:
            return self.record.command(index)
        return f"noisescope merge {self.run.directory}"


def compute_shard(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    share: Share,
    *,
    runs_directory: Path = Path("runs"),
    run_directory: Path | None = None,
    command: str,
    reporter: Reporter,
) -> ShardDone:
    """Compute what is missing of `share`, and record that it is finished.

    `command` is the audit's own command line, without the shard. Raises UsageError, DataError,
    ModelError or RunError.
    """
    job = Job.of(dataset, policy, evidence, command, reporter)
    run = create_run(runs_directory, job.plan, run_directory)
    if not run.pairs_path.is_file():
        job.write_pairs(run)
    work = job.work(run)
    shares, cuts = work.divide(policy, range(len(work)), share.of)
    mine = [unit for unit, one in enumerate(shares) if one == share.index]
    computed = work.compute(Worker(policy, job.config, reporter), mine, share) if mine else 0
    record = Record(job.plan.fingerprint, share, cuts, job.origin, work.facts(job.config))
    write_atomic(run.directory / FOLDER / record.name, record.text())
    left = Counter(shares[unit] for unit in work.missing())
    return ShardDone(run, record, len(mine), computed, dict(sorted(left.items())), work.unit)


def require_divisible(world: World, evidence: EvidenceConfig, share: Share | None) -> None:
    """Raise UsageError for options with which several processes cannot divide the work."""
    if world.size > 1 and share is not None:
        raise UsageError(
            "--shard with a launcher: each of its processes would compute the same share",
            hint="Use one of the two; a launcher divides the work itself.",
        )
    if share is not None and evidence.sources:
        raise UsageError(
            "--evidence needs all responses in one process, and --shard computes a share of them",
            hint="Leave --shard out: features that shards have cached are reused.",
        )
    names = [str(source).partition(":")[0] for source in evidence.sources]
    if world.size > 1 and (kinds := [name for name in names if name in REPLICAS]):
        kind = f"--kind {kinds[0]}" if kinds[0] == "lora" else "--from-adapters DIRECTORY"
        raise UsageError(
            f"--evidence {kinds[0]} makes its replicas in one process, and this launch has "
            f"{world.size}",
            hint=f"Launch `noisescope fine-tune DATASET {kind} --folds-by "
            f"{evidence.held_out_together}` first, then score in one process, which finds them.",
        )
    if world.size > 1 and evidence.judges:
        raise UsageError(
            f"--evidence {evidence.judges[0]} under a launcher: each process would ask",
            hint="Run the command without a launcher: features that one has cached are reused.",
        )
    if (world.size > 1 or share is not None) and evidence.lora.get("patience"):
        raise UsageError(
            "--early-stopping needs all replicas in one process",
            hint="Leave it out; the margins of every checkpoint are kept.",
        )
