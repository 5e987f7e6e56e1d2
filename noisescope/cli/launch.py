"""How `score` and `fine-tune` begin, in one process or in each of those a launcher started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from noisescope.cli.console import Terminal
from noisescope.cli.options import EvidenceOptions, SourceOptions

if TYPE_CHECKING:
    from noisescope.gathering import EvidenceConfig
    from noisescope.pairs import PreferenceDataset
    from noisescope.policies import Policy
    from noisescope.run import Run
    from noisescope.sharing import Shard


@final
@dataclass(frozen=True)
class Ready:
    """Pairs, the policy that judges them, and how; `run` is locked where ranks shared the work."""

    pairs: PreferenceDataset
    policy: Policy
    evidence: EvidenceConfig
    run: Run | None


def begin(
    source: SourceOptions,
    evidence: EvidenceOptions,
    dataset: str | None,
    terminal: Terminal,
    shard: Shard | None = None,
) -> Ready | None:
    """Read pairs and model; under a launcher, compute the features together.

    Only rank 0 goes on from here: None in the others. Raises what `SourceOptions.read` does, and
    UsageError for what cannot be shared.
    """
    from noisescope.launches import compute_over_ranks, require_alone
    from noisescope.ranks import joined

    run = None
    with joined() as world:
        config = evidence.config()
        require_alone(world, config, shard)
        pairs, policy = source.read(dataset, terminal, lambda pairs: config.check(pairs.modality))
        if world.size > 1:
            run = compute_over_ranks(
                pairs,
                policy,
                config,
                world,
                runs_directory=source.runs_dir,
                run_directory=source.run_dir,
                reporter=terminal,
            )
    return Ready(pairs, policy, config, run) if world.first else None
