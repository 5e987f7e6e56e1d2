"""One share of an audit's evidence, computed apart from the others: what `score --shard` calls.

    compute_shard(dataset, policy, evidence, read_shard("3/8"), command=...)

The run directory then holds its plan, its pairs and `shards/3-of-8.json`, which says where the
shares are cut and what command computes one; feature parts lie in the cache beside it, LoRA
replicas in a folder each. `merging.merge` makes a finished run of them. Shards need no
communication and take no lock; the ranks of a launch (`launches.py`) have rank 0 to ask.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

from noisescope.auditing import Origin, check_fit, origin_of, plan_run, write_pairs
from noisescope.errors import RunError
from noisescope.gathering import EvidenceConfig, Reporter
from noisescope.gathering_adapters import adapter_facts
from noisescope.integrity import seal, unsealed
from noisescope.masking import without_secrets
from noisescope.pairs import PreferenceDataset
from noisescope.policies import Policy
from noisescope.policies.items import distinct_items
from noisescope.responses import KINDS, compute, lacking
from noisescope.run import Run, shared_run
from noisescope.sharing import Shard, cut, share_of
from noisescope.storage import write_atomic

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
    from noisescope.gathering_lora import fill_shared, keep_encodings, train_apart
    from noisescope.members import finished

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
