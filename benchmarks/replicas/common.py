"""Compare 3 and 4 of `benchmarks.replicas`: one recipe trained by us and by TRL."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Report
from benchmarks.replicas.ours import (
    CONFIG,
    WHOLE,
    adapter_margins,
    head_elsewhere,
    heads,
    ours,
)
from benchmarks.replicas.peer import Peer
from benchmarks.replicas.task import Bool, Float, Task, judged, margins_of
from benchmarks.resampling import bootstrap
from noisescope.models.causal_lm import CausalLMPolicy
from noisescope.models.items import fold_keys
from noisescope.scoring.metrics import auroc


def common_problem(
    pool: Task, policy: CausalLMPolicy, peer: Peer, report: Report, count: int, scored: int
) -> None:
    """Run comparison 3: one recipe on half of `count` pairs of `pool`, tested on the rest of it.

    Both adapters are scored by us; TRL scores the first `scored` of the rest with its own, which
    is the parity check.
    """
    task = pool.take(np.arange(count))
    trained = task.take(np.flatnonzero(task.halves(1, WHOLE.seed)[0]))
    keys = fold_keys(pool.table)
    others = pool.take(np.flatnonzero(~np.isin(keys, fold_keys(trained.table))))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        lora = ours(task, policy, WHOLE, place / "ours")
        few = others.take(np.arange(min(scored, len(others.tokens))))
        answer = peer.run(trained, few, layers=None, save=str(place / "trl"))
        adapters = [place / "ours" / "replicas" / "0", place / "trl"]
        mine, theirs = adapter_margins(others, policy, adapters, WHOLE.beta)
    row = trl_row(answer, "all")
    rows = [head_elsewhere(trained, others, policy), lora, row]
    lora |= outcome(mine, others.wrong)
    row |= outcome(theirs, others.wrong)
    size, judges = len(trained.tokens), len(others.tokens)
    report.tables[f"3. train on {size} short pairs, judge on {judges} others"] = rows
    against(report, "3. our replica and TRL's", mine, theirs, others.wrong)
    differences = parity(answer, theirs / WHOLE.beta)
    report.tables["TRL's adapter: our log-ratios against TRL's own"] = [differences]
    name = "log-ratios of TRL's adapter, ours - TRL's over their rms"
    report.at_most(name, differences["max difference / rms"], 1e-4)


def harmless(task: Task, policy: CausalLMPolicy, peer: Peer, report: Report) -> None:
    """Run comparison 4: eight heads, eight LoRA replicas and one of TRL on a little of hh-harmless.

    TRL trains on the pairs of our first replica, and both are tested on the other half.
    """
    half = task.halves(2, CONFIG.seed)[0]
    trained, others = (task.take(np.flatnonzero(mask)) for mask in (half, ~half))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        lora = ours(task, policy, CONFIG, place / "ours")
        together = margins_of(task, place / "ours", range(CONFIG.replicas))
        mine = margins_of(task, place / "ours", range(1))[~half]
        answer = peer.run(
            trained, others.take(np.arange(1)), layers=CONFIG.top_layers, save=str(place / "trl")
        )
        (theirs,) = adapter_margins(others, policy, [place / "trl"], CONFIG.beta)
    first = {"kind": "lora, its first replica", "M": 1, "K": CONFIG.top_layers, "how": "measured"}
    report.tables[f"4. hh-harmless, {len(task.tokens)} short pairs, 20 % planted flips"] = [
        heads(task, policy),
        lora | {"AUROC": judged(together, task.wrong)},
        first | outcome(mine, others.wrong),
        trl_row(answer, CONFIG.top_layers) | outcome(theirs, others.wrong),
    ]
    against(report, "4. our first replica and TRL's", mine, theirs, others.wrong)


def outcome(margins: Float, wrong: Bool) -> dict[str, Any]:
    """Return loss and AUROC of margins on pairs their replica did not see."""
    return {
        "held-out loss": float(np.logaddexp(0, -margins).mean()),
        "AUROC": judged(margins, wrong),
    }


def trl_row(answer: dict[str, Any], layers: int | str | None) -> dict[str, Any]:
    """Time and memory of a whole training by TRL."""
    return {
        "kind": "TRL",
        "M": 1,
        "K": layers,
        "how": "measured",
        "train s": sum(answer["step_wall"]),
        "peak MiB": answer["peak_mib"],
    }


def against(report: Report, name: str, mine: Float, theirs: Float, wrong: Bool) -> None:
    """Compare our margins with TRL's of the same pairs; the target is that ours find no less."""
    gap = bootstrap(
        lambda score, wrong, weights: auroc(score, wrong, weights) - auroc(-theirs, wrong, weights),
        -mine,
        wrong,
    )
    report.tables[name] = [
        {
            "pairs": len(wrong),
            "AUROC ours - TRL": f"{gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
            "correlation of margins": float(np.corrcoef(mine, theirs)[0, 1]),
            "same sign": float(((mine > 0) == (theirs > 0)).mean()),
        }
    ]
    report.at_least(f"{name}: AUROC ours - TRL, upper end of its 90 % interval", gap.high, 0)


def parity(answer: dict[str, Any], ours: Float) -> dict[str, Any]:
    """Compare our log-ratios of TRL's adapter [N] with TRL's own of the first n pairs."""
    policy, reference = (np.array(answer["logps"][name]) for name in ("policy", "reference"))
    theirs = (policy - reference) @ [1.0, -1.0]  # [n, 2] -> [n]
    gap = np.abs(ours[: len(theirs)] - theirs)
    return {
        "pairs": len(theirs),
        "rms log-ratio": float(np.sqrt(np.mean(theirs**2))),
        "max difference": float(gap.max()),
        "max difference / rms": float(gap.max() / np.sqrt(np.mean(theirs**2))),
        "median relative": float(np.median(gap / np.abs(theirs))),
        "mean log-probability": float(policy.mean()),
    }
