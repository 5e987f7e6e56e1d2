"""One share of an audit's features, computed apart from the others: what `score --shard` calls.

    compute_shard(dataset, policy, evidence, read_shard("3/8"), command=...)

The run directory then holds its plan, its pairs and `shards/3-of-8.json`, which says where the
shares are cut and what command computes one; the feature parts lie in the cache beside it.
`merging.merge` makes a finished run of them. Shards need no communication and take no lock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from noisescope.auditing import Origin, check_fit, origin_of, plan_run, write_pairs
from noisescope.errors import RunError, UsageError
from noisescope.gathering import EvidenceConfig, Reporter, cache_directory, fill_features
from noisescope.integrity import seal, unsealed
from noisescope.pairs import Item, PreferenceDataset
from noisescope.policies import Policy
from noisescope.policies.items import distinct_items
from noisescope.ranks import World
from noisescope.run import Plan, Run, open_run, shared_run
from noisescope.sharing import Shard, cut, share_of
from noisescope.storage import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Folder of a run directory in which each shard says that it is done.
FOLDER = "shards"
FORMAT = 1


@final
@dataclass(frozen=True)
class Record:
    """What a finished shard leaves behind; `plan` is the fingerprint of the run it is of."""

    plan: str
    shard: Shard
    cuts: tuple[str, ...]
    origin: Origin

    @property
    def name(self) -> str:
        """Its file under `FOLDER`."""
        return f"{self.shard.index}-of-{self.shard.of}.json"

    def command(self, index: int) -> str:
        """The command line that computes share `index`."""
        return f"{self.origin.command} --shard {index}/{self.shard.of}"

    def text(self) -> str:
        """Contents of its file."""
        content = {"format": FORMAT, "plan": self.plan, "cuts": list(self.cuts)}
        content |= {"shard": asdict(self.shard), "origin": asdict(self.origin)}
        return json.dumps(seal(content), indent=2) + "\n"


def read_record(path: Path, text: str | bytes) -> Record:
    """The record in the `text` of a file. Raises RunError naming `path`."""
    damaged = RunError(f"{path} is damaged", hint="Compute that shard again; it is soon done.")
    try:
        content = json.loads(text)
        rest = unsealed(content, path, str(damaged.hint))
        if rest["format"] != FORMAT:
            raise RunError(
                f"{path} is in format {rest['format']}, this is format {FORMAT}", hint=damaged.hint
            )
        record = Record(
            str(rest["plan"]),
            Shard(int(rest["shard"]["index"]), int(rest["shard"]["of"])),
            tuple(str(place) for place in rest["cuts"]),
            Origin(**rest["origin"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error
    if record.name != path.name or len(record.cuts) != record.shard.of - 1:
        raise damaged
    return record


@final
@dataclass(frozen=True)
class ShardDone:
    """A computed share: its responses, how many were computed now, and what lacks elsewhere.

    `left` holds, by shard, the responses that this machine's cache does not have.
    """

    run: Run
    record: Record
    responses: int
    computed: int
    left: Mapping[int, int]

    @property
    def next(self) -> str:
        """What to type next: a shard that is not here, or the merge."""
        for index in self.left:
            return self.record.command(index)
        return f"noisescope merge {self.run.directory}"


def compute_shard(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    shard: Shard,
    *,
    runs_directory: Path = Path("runs"),
    run_directory: Path | None = None,
    command: str,
    reporter: Reporter,
) -> ShardDone:
    """Compute the features of share `shard` that are not cached, and record that they are.

    `command` is the audit's own command line, without the shard. Raises UsageError, DataError,
    ModelError or RunError.
    """
    from noisescope.features import uncached

    check_fit(dataset, policy, evidence)
    plan = plan_run(dataset, policy, evidence)
    run = shared_run(runs_directory, plan, run_directory)
    if not run.pairs_path.is_file():
        write_pairs(run, dataset)
    items = distinct_items(dataset.table)[0]
    cuts = cut(items, policy.sizes(items), shard.of)
    shares = [share_of(item, cuts) + 1 for item in items]
    mine = [item for item, share in zip(items, shares, strict=True) if share == shard.index]
    computed = fill_features(policy, mine, run, reporter, f" (shard {shard})") if mine else 0
    record = Record(plan.fingerprint, shard, cuts, origin_of(dataset, policy, command))
    write_atomic(run.directory / FOLDER / record.name, record.text())
    left: dict[int, int] = {}
    for item in uncached(policy, items, cache_directory(run)):
        share = share_of(item, cuts) + 1
        left[share] = left.get(share, 0) + 1
    return ShardDone(run, record, len(mine), computed, dict(sorted(left.items())))


def compute_over_ranks(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    world: World,
    *,
    runs_directory: Path = Path("runs"),
    run_directory: Path | None = None,
    reporter: Reporter,
) -> Run | None:
    """Compute the features that are not cached, each rank its share; the run, locked, at rank 0.

    Rank 0 says what is missing, so a job that continues a killed one is shared out evenly, too.
    All ranks write to one cache: where rank 0 cannot see what another wrote, RunError says so.
    """
    from noisescope.features import uncached

    check_fit(dataset, policy, evidence)
    plan = plan_run(dataset, policy, evidence)
    world.require_same(_identity(plan))
    run = open_run(runs_directory, plan, run_directory) if world.first else None
    shared = run or Run(run_directory or runs_directory / plan.directory_name)
    items = distinct_items(dataset.table)[0]
    todo: list[Item] = []
    if run is not None and not run.evidence_complete:
        todo = uncached(policy, items, cache_directory(run))
    wanted = _unpacked(world.from_first(_packed(items, todo)), items)
    if not wanted:
        return run
    cuts = cut(wanted, policy.sizes(wanted), world.size)
    mine = [item for item in wanted if share_of(item, cuts) == world.rank]
    if mine:
        fill_features(policy, mine, shared, reporter, f" (rank {world.rank} of {world.size})")
    world.exchange()
    if run is not None and (lost := uncached(policy, wanted, cache_directory(run))):
        raise RunError(
            f"features of {len(lost):,} responses were computed by other ranks and are not in "
            f"{cache_directory(run)}",
            hint="Ranks on several hosts need --runs-dir on a file system they share; else use "
            "--shard i/n on each and `noisescope merge`.",
        )
    return run


def require_alone(world: World, evidence: EvidenceConfig, shard: Shard | None) -> None:
    """Raise UsageError for a job that several processes cannot share as it was asked."""
    if world.size > 1 and shard is not None:
        raise UsageError(
            "--shard with a launcher: each of its processes would compute the same share",
            hint="Use one of the two; a launcher shares the work out itself.",
        )
    if (world.size > 1 or shard is not None) and evidence.kind != "head":
        raise UsageError(
            f"--kind {evidence.kind} makes its replicas together in one process",
            hint="Leave the launcher and --shard out, or use --kind head.",
        )


def _identity(plan: Plan) -> dict[str, str]:
    """What has to be the same in every rank."""
    from noisescope import __version__

    return {
        "version of noisescope": __version__,
        "dataset": plan.dataset_fingerprint,
        "model": plan.model_fingerprint,
        "plan": plan.fingerprint,
    }


def _packed(items: Sequence[Item], todo: Sequence[Item]) -> str:
    """Which of `items` are in `todo`, a bit each, as hex digits."""
    import numpy as np

    wanted = {item.key for item in todo}
    bits: NDArray[np.bool_] = np.array([item.key in wanted for item in items], bool)
    return np.packbits(bits).tobytes().hex()


def _unpacked(text: str, items: Sequence[Item]) -> list[Item]:
    import numpy as np

    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=len(items))
    return [item for item, bit in zip(items, bits, strict=True) if bit]
