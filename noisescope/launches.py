"""The ranks of one launch, each computing its share of an audit's evidence.

    with joined() as world:
        run = compute_over_ranks(dataset, policy, evidence, world, reporter=...)

Rank 0 holds the run and says what is missing; responses are shared out in whole chunks, LoRA
replicas in turn. What each computed lies on one file system, from which rank 0 then goes on alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from noisescope.auditing import check_fit, plan_run
from noisescope.errors import RunError, UsageError
from noisescope.gathering import EvidenceConfig, Reporter, cache_directory
from noisescope.pairs import Item, PreferenceDataset
from noisescope.policies import Policy
from noisescope.policies.items import distinct_items
from noisescope.ranks import World
from noisescope.responses import KINDS, compute, lacking
from noisescope.run import Plan, Run, open_run
from noisescope.sharing import Shard, cut, share_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    from noisescope.gathering_lora import fill_shared, keep_encodings, train_apart
    from noisescope.members import FOLDER as MEMBERS
    from noisescope.members import finished

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
