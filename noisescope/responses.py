"""What is computed response by response, so that ranks and shards can share it out.

    todo = lacking(policy, items, evidence, run)
    compute(policy, todo, evidence, run, reporter)

Features for heads, log-probabilities for adapters of others; LoRA replicas are shared out whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from noisescope.features import uncached
from noisescope.gathering import EvidenceConfig, Reporter, cache_directory, fill_features
from noisescope.gathering_adapters import CACHE, fill_scores, scores_fingerprint, unscored
from noisescope.pairs import Item
from noisescope.plan import Plan
from noisescope.policies import Policy
from noisescope.run import Run

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
