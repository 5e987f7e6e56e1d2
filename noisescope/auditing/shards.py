"""One share of an audit's evidence, computed apart from the others: what `score --shard` calls.

    compute_shard(dataset, policy, evidence, read_shard("3/8"), command=...)

The run directory then holds its plan, its pairs and `shards/3-of-8.json`, which says where the
shares are cut and what command computes one; feature parts lie in the cache beside it, LoRA
replicas in a folder each. `merging.merge` makes a finished run of them. Shards need no
communication and take no lock; the ranks of a launch (`launches.py`) have rank 0 to ask.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.auditing.audit import Origin, check_fit, origin_of, plan_run, prepared, write_pairs
from noisescope.auditing.ranks import World
from noisescope.errors import RunError, UsageError
from noisescope.models import Policy
from noisescope.models.features import uncached
from noisescope.models.items import distinct_items
from noisescope.pairs import Item, PreferenceDataset
from noisescope.progress import Reporter
from noisescope.replicas.gather import EvidenceConfig, cache_directory, fill_features
from noisescope.replicas.gather_adapters import (
    CACHE,
    adapter_facts,
    fill_scores,
    scores_fingerprint,
    unscored,
)
from noisescope.replicas.partition import Shard, cut, share_of
from noisescope.storage.checksums import seal, unsealed
from noisescope.storage.files import write_atomic
from noisescope.storage.redact import without_secrets
from noisescope.storage.run import Plan, Run, open_run, shared_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Kinds of evidence made response by response, and what a response then has.
KINDS = {"head": "features", "adapters": "scores"}


def lacking(
    policy: Policy, items: Sequence[Item], evidence: EvidenceConfig, run: Run
) -> list[Item]:
    """The distinct items that no sound part beside `run` holds."""
    if evidence.kind == "adapters":
        return unscored(policy, items, evidence, run)
    return uncached(policy, items, cache_directory(run))


def compute(
    policy: Policy,
    items: list[Item],
    evidence: EvidenceConfig,
    run: Run,
    reporter: Reporter,
    of: str = "",
) -> int:
    """Compute those of `items` that lack; how many. `of` says whose they are."""
    if evidence.kind == "adapters":
        return fill_scores(policy, items, evidence, run, reporter, of)
    return fill_features(policy, items, run, reporter, of)


def parts_of(plan: Plan) -> tuple[Path, str]:
    """Where the parts of a plan's evidence lie below a directory of runs, and what made them."""
    model = plan.model_fingerprint
    if plan.evidence["kind"] == "adapters":
        made_by = scores_fingerprint(model, plan.evidence["adapters"])
        return Path(".cache") / CACHE / made_by, made_by
    return Path(".cache") / "features" / model, model


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
    """Compute the evidence that is missing, each rank its share; the run, locked, at rank 0.

    Rank 0 says what is missing, so a job that continues a killed one is shared out evenly, too.
    All ranks write to one file system: where rank 0 cannot see what another wrote, RunError says
    so.
    """
    check_fit(dataset, policy, evidence)
    dataset = prepared(dataset, policy, reporter)
    plan = plan_run(dataset, policy, evidence)
    world.require_same(_identity(plan))
    run = open_run(runs_directory, plan, run_directory) if world.first else None
    shared = run or Run(run_directory or runs_directory / plan.directory_name)
    wanted = run is not None and not run.evidence_complete
    share = _responses_over_ranks if evidence.kind in KINDS else _replicas_over_ranks
    share(dataset, policy, evidence, world, shared, wanted, reporter)
    return run


def _responses_over_ranks(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    world: World,
    run: Run,
    wanted: bool,
    reporter: Reporter,
) -> None:
    """What is computed of all responses, whole chunks of them a rank."""
    items = distinct_items(dataset.table)[0]
    missing = lacking(policy, items, evidence, run) if wanted else []
    todo = _unpacked(world.from_first(_packed(items, missing)), items)
    if not todo:
        return
    cuts = cut(todo, policy.sizes(todo), world.size)
    mine = [item for item in todo if share_of(item, cuts) == world.rank]
    if mine:
        compute(policy, mine, evidence, run, reporter, f" (rank {world.rank} of {world.size})")
    world.exchange()
    if world.first and (lost := lacking(policy, todo, evidence, run)):
        what = f"{KINDS[evidence.kind]} of {len(lost):,} responses"
        raise _unseen(what, cache_directory(run).parent)


def _replicas_over_ranks(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    world: World,
    run: Run,
    wanted: bool,
    reporter: Reporter,
) -> None:
    """LoRA replicas in turn, one rank after the other; what they share, in equal shares."""
    from noisescope.replicas.gather_lora import fill_shared, keep_encodings, train_apart
    from noisescope.replicas.standalone import FOLDER as MEMBERS
    from noisescope.replicas.standalone import finished

    plan, count = plan_run(dataset, policy, evidence).fingerprint, evidence.replicas
    known = finished(run, plan, count)[0] if wanted else {}
    missing = [m for m in range(count) if m not in known] if wanted else []
    todo = json.loads(world.from_first(json.dumps(missing)))
    if not todo:
        return
    reporter.note(f"{len(todo):,} of {count:,} LoRA replicas to train over {world.size:,} ranks")
    share = (world.rank, world.size)
    keep_encodings(dataset, policy, run, reporter, share)
    world.exchange()
    keep_encodings(dataset, policy, run, reporter)  # finds what the others computed
    fill_shared(dataset, policy, evidence, run, reporter, share)
    world.exchange()
    mine = todo[world.rank :: world.size]
    if mine:
        said = f" (rank {world.rank} of {world.size})"
        train_apart(dataset, policy, evidence, run, plan, mine, reporter, said)
    world.exchange()
    if world.first and (lost := set(todo) - set(finished(run, plan, count)[0])):
        raise _unseen(f"replicas {', '.join(map(str, sorted(lost)))}", run.directory / MEMBERS)


def _unseen(what: str, where: Path) -> RunError:
    """The error of what other ranks computed on a disk of their own."""
    return RunError(
        f"{what} were computed by other ranks and are not in {where}",
        hint="Ranks on several hosts need --runs-dir on a file system they share; else use "
        "--shard i/n on each and `noisescope merge`.",
    )


def require_alone(world: World, evidence: EvidenceConfig, shard: Shard | None) -> None:
    """Raise UsageError for a job that several processes cannot share as it was asked."""
    if world.size > 1 and shard is not None:
        raise UsageError(
            "--shard with a launcher: each of its processes would compute the same share",
            hint="Use one of the two; a launcher shares the work out itself.",
        )
    if world.size == 1 and shard is None:
        return
    if evidence.lora.get("patience"):
        raise UsageError(
            "--early-stopping asks all replicas after each checkpoint, in one process",
            hint="Leave it out here; the margins of every checkpoint are kept.",
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


#: Folder of a run directory in which each shard says that it is done.
FOLDER = "shards"
FORMAT = 1


@final
@dataclass(frozen=True)
class Record:
    """What a finished shard leaves behind; `plan` is the fingerprint of the run it is of.

    `cuts` are the places between the shares' responses; none where replicas are shared out.
    `facts` is what a manifest says of adapters of others.
    """

    plan: str
    shard: Shard
    cuts: tuple[str, ...]
    origin: Origin
    facts: Mapping[str, Any] = field(default_factory=dict)

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
        origin = without_secrets(asdict(self.origin))
        content |= {"shard": asdict(self.shard), "origin": origin}
        content |= {"facts": dict(self.facts)} if self.facts else {}
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
            dict(rest.get("facts", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error
    if record.name != path.name or len(record.cuts) not in (0, record.shard.of - 1):
        raise damaged
    return record


@final
@dataclass(frozen=True)
class ShardDone:
    """A computed share: how many `what` it has, how many were computed now, what lacks elsewhere.

    `left` holds, by shard, how many of them this machine does not have.
    """

    run: Run
    record: Record
    size: int
    computed: int
    left: Mapping[int, int]
    what: str = "responses"

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
    """Compute what share `shard` lacks, and record that it is there.

    `command` is the audit's own command line, without the shard. Raises UsageError, DataError,
    ModelError or RunError.
    """
    check_fit(dataset, policy, evidence)
    dataset = prepared(dataset, policy, reporter)
    plan = plan_run(dataset, policy, evidence)
    run = shared_run(runs_directory, plan, run_directory)
    if not run.pairs_path.is_file():
        write_pairs(run, dataset)
    share = _responses_of_shard if evidence.kind in KINDS else _replicas_of_shard
    record = Record(plan.fingerprint, shard, (), origin_of(dataset, policy, command))
    return share(dataset, policy, evidence, record, run, reporter)


def _responses_of_shard(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    record: Record,
    run: Run,
    reporter: Reporter,
) -> ShardDone:
    """What is computed of the responses that a shard has."""
    shard, items = record.shard, distinct_items(dataset.table)[0]
    cuts = cut(items, policy.sizes(items), shard.of)
    shares = [share_of(item, cuts) + 1 for item in items]
    mine = [item for item, share in zip(items, shares, strict=True) if share == shard.index]
    said = f" (shard {shard})"
    computed = compute(policy, mine, evidence, run, reporter, said) if mine else 0
    facts = adapter_facts(evidence) if evidence.kind == "adapters" else {}
    record = replace(record, cuts=cuts, facts=facts)
    write_atomic(run.directory / FOLDER / record.name, record.text())
    left: dict[int, int] = {}
    for item in lacking(policy, items, evidence, run):
        share = share_of(item, cuts) + 1
        left[share] = left.get(share, 0) + 1
    return ShardDone(run, record, len(mine), computed, dict(sorted(left.items())))


def _replicas_of_shard(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    record: Record,
    run: Run,
    reporter: Reporter,
) -> ShardDone:
    """The replicas that a shard has: every n-th."""
    from noisescope.replicas.gather_lora import fill_shared, keep_encodings, train_apart
    from noisescope.replicas.standalone import finished

    shard, plan, count = record.shard, record.plan, evidence.replicas
    mine, computed = range(shard.index - 1, count, shard.of), 0
    known, _ = finished(run, plan, count)
    if not known.keys() >= set(mine):
        keep_encodings(dataset, policy, run, reporter)
        fill_shared(dataset, policy, evidence, run, reporter, (shard.index - 1, shard.of))
        said = f" (shard {shard})"
        computed = train_apart(dataset, policy, evidence, run, plan, mine, reporter, said)
    write_atomic(run.directory / FOLDER / record.name, record.text())
    left: dict[int, int] = {}
    for number in set(range(count)) - set(finished(run, plan, count)[0]):
        left[number % shard.of + 1] = left.get(number % shard.of + 1, 0) + 1
    return ShardDone(run, record, len(mine), computed, dict(sorted(left.items())), "replicas")
