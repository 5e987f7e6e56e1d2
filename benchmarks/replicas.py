"""LoRA replicas against runs of TRL's DPOTrainer: time, memory and AUROC, in turn on one machine.

    python -m benchmarks.replicas [--quick] [--json FILE] [--peer-python VENV] [--model DIR]

TRL 1.16 runs in a venv of its own: NOISESCOPE_PEER_VENV or --peer-python names it, else it is made
once in the user's cache. By hand: `python -m venv V && V/bin/pip install torch==2.13.0 trl==1.16.0
datasets peft accelerate`. Give both one thread (OMP_NUM_THREADS=1) on a shared machine.

Data: ukp-convarg with its natural crowd noise. SmolLM2-135M-Instruct, float32, rank 16 on every
linear layer of the adapted blocks, pairs of at most 256 tokens. Three comparisons:

1. M = 1, all blocks, batch 8: both train one epoch on the same pairs, measured on both sides.
2. M = 8 with scores, top 4 blocks, whole topics of a fixed 3,000 pairs: ours runs in full; TRL
   runs a slice, and its seconds are scaled by padded tokens to eight epochs on half the pairs and
   a scoring pass over all. Two slice lengths show whether a step's cost is constant.
3. A small common problem (short arguments, all blocks, one recipe): AUROC of TRL's replica and of
   ours on pairs neither trained on, and our log-ratios of TRL's adapter against TRL's own.

Rows say whether their seconds are measured or scaled. Not counted: starting TRL, loading its model,
tokenising, its first step. Its reference pass over the scored pairs counts once for all eight runs.
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import (
    Options,
    Report,
    main,
    peak_memory_mib,
    peer_python,
    reset_peak_memory,
    stopwatch,
)
from benchmarks.models import smollm2
from benchmarks.replicas_peer import MAX_LENGTH, PACKAGES, Peer, Rates, linearity
from benchmarks.replicas_task import Float, Task, judged, margins_of, ukp_convarg
from noisescope.features import compute_features
from noisescope.policies.causal_lm import CausalLMPolicy, load_causal_lm
from noisescope.policies.items import distinct_items, fold_keys
from noisescope.ranking import auroc, bootstrap
from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.replicas.lora import score_adapters, train_lora
from noisescope.replicas.lora_config import LoraConfig

CONFIG = LoraConfig(replicas=8, rank=16, alpha=32.0)
#: One replica on every block, pairs in random order, as TRL trains.
WHOLE = replace(CONFIG, replicas=1, top_layers=None, batch=8, cluster=1)
SLICES = "TRL: is a step's cost constant? (seconds per 1,000 padded tokens)"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    topics: int  # of the 32, in comparison 2
    sliced: int  # pairs of comparison 1, half of them trained on
    steps: int  # of TRL's slice in comparison 2
    scored: int  # pairs of TRL's scoring slices
    short: int  # pairs of comparison 3, half of them trained on
    shortest: int  # the shortest pairs of all, which they are drawn from; the others judge


FULL = Size(topics=4, sliced=48, steps=4, scored=16, short=240, shortest=600)
QUICK = Size(topics=1, sliced=32, steps=2, scored=8, short=48, shortest=120)


def forget_peak() -> None:
    """Begin a new `peak_memory_mib` without what earlier runs freed and glibc kept."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak_memory()


def ours(task: Task, policy: CausalLMPolicy, config: LoraConfig, run: Path) -> dict[str, Any]:
    """One run of M packed replicas, scores included."""
    forget_peak()
    with stopwatch() as spent:
        summary = train_lora(policy, task.table, config, run)
    stages = summary.seconds
    trained = config.replicas * summary.steps * config.batch
    needed = task.halves(config.replicas, config.seed).any(axis=0).mean()  # of the reference pass
    return {
        "kind": "lora",
        "M": config.replicas,
        "K": config.top_layers or "all",
        "seconds": spent["seconds"],
        "how": "measured",
        "reference s": stages["trunk"],
        "train s": stages["train"],
        "score s": stages["score"],
        "trained pairs/s": trained / (stages["train"] + needed * stages["trunk"]),
        "cpu s": spent["cpu"],
        "peak MiB": peak_memory_mib(),
        "held-out loss": summary.held_out_loss[summary.best_step],
    }


def heads(task: Task, policy: CausalLMPolicy) -> dict[str, Any]:
    """Head replicas on the same pairs, feature pass included."""
    forget_peak()
    with tempfile.TemporaryDirectory() as scratch, stopwatch() as spent:
        items, chosen, rejected = distinct_items(task.table)
        features = compute_features(policy, items, Path(scratch), lambda done, total, note: None)
        config = HeadConfig(replicas=CONFIG.replicas)
        fit = fit_heads(features, chosen, rejected, fold_keys(task.table), config)
    return {
        "kind": "head",
        "M": config.replicas,
        "K": "-",
        "seconds": spent["seconds"],
        "how": "measured",
        "cpu s": spent["cpu"],
        "peak MiB": peak_memory_mib(),
        "held-out loss": -fit.log_likelihood,
        "AUROC": judged(fit.margins.mean(axis=0), task.wrong),
    }


def head_elsewhere(trained: Task, others: Task, policy: CausalLMPolicy) -> dict[str, Any]:
    """One head fitted on `trained`, judged on `others`: features alone, no pooling by identity."""
    forget_peak()
    count = len(trained.tokens)
    with tempfile.TemporaryDirectory() as scratch, stopwatch() as spent:
        both = pa.concat_tables([trained.table, others.table])
        items, *sides = distinct_items(both)
        features = compute_features(policy, items, Path(scratch), lambda done, total, note: None)
        chosen, rejected = (side[:count] for side in sides)
        config = HeadConfig(replicas=1, identity=False, bootstrap=0.0)
        fit = fit_heads(features, chosen, rejected, fold_keys(trained.table), config)
    rewards = fit.rewards(features)[0]
    margins = rewards[sides[0][count:]] - rewards[sides[1][count:]]
    return {
        "kind": "head",
        "M": 1,
        "K": "-",
        "seconds": spent["seconds"],
        "how": "measured",
        "peak MiB": peak_memory_mib(),
        "held-out loss": float(np.logaddexp(0, -margins).mean()),
        "AUROC": judged(margins, others.wrong),
    }


def one_replica(
    task: Task, policy: CausalLMPolicy, peer: Peer, report: Report, size: Size
) -> Rates:
    """Comparison 1: the same epoch, all blocks, measured on both sides."""
    trained = task.take(np.flatnonzero(task.halves(1, WHOLE.seed)[0]))
    with tempfile.TemporaryDirectory() as run:
        lora = ours(task, policy, WHOLE, Path(run))
    answer = peer.run(trained, task.take(np.arange(size.scored)), layers=None)
    rates = Rates.of(answer)
    steady = rates.step * sum(answer["step_tokens"]) / 1e3  # the first step at the others' rate
    pairs = min(len(trained.tokens), len(answer["step_wall"]) * WHOLE.batch)
    row = {
        "kind": "TRL",
        "M": 1,
        "K": "all",
        "how": "measured",
        "train s": steady,
        "trained pairs/s": pairs / steady,
        "cpu s": sum(answer["step_cpu"]),
        "peak MiB": answer["peak_mib"],
    }
    name = f"1. one epoch on {pairs} pairs, all blocks, batch {WHOLE.batch}"
    report.tables[name] = [lora, row]
    report.tables[SLICES] = [linearity("all blocks", answer)]
    faster = lora["trained pairs/s"] / row["trained pairs/s"]
    report.at_least("M = 1, all blocks: training pairs/s over TRL's", faster, 4)
    return rates


def eight_replicas(
    task: Task, policy: CausalLMPolicy, peer: Peer, report: Report, size: Size, whole: Rates
) -> None:
    """Comparison 2: ours in full, TRL's slice scaled."""
    rows = [heads(task, policy)]
    with tempfile.TemporaryDirectory() as run:
        lora = ours(task, policy, CONFIG, Path(run))
        found = {m: margins_of(task, Path(run), range(m)) for m in (2, 4, CONFIG.replicas)}
    rows.append(lora | {"AUROC": judged(found[CONFIG.replicas], task.wrong)})
    for m in (4, 2):
        part = (lora["train s"] + lora["score s"]) * m / CONFIG.replicas
        rows.append(
            {
                "kind": "lora",
                "M": m,
                "K": lora["K"],
                "seconds": lora["reference s"] + part,
                "how": "scaled",
                "AUROC": judged(found[m], task.wrong),
            }
        )
    some = np.random.default_rng(0).permutation(len(task.tokens))
    trained = task.take(some[: WHOLE.batch * size.steps])
    answer = peer.run(trained, task.take(some[: size.scored]), layers=CONFIG.top_layers)
    report.tables[SLICES].append(linearity(f"top {CONFIG.top_layers}", answer))
    for blocks, rates in ((CONFIG.top_layers, Rates.of(answer)), ("all", whole)):
        rows += [
            {"kind": "TRL", "M": m, "K": blocks, **rates.scaled(task, m, CONFIG.seed)}
            for m in (CONFIG.replicas, 1)
        ]
    report.tables[f"2. replicas with scores, {len(task.tokens)} pairs"] = rows
    eight, one = (row for row in rows if row["kind"] == "TRL" and row["K"] == CONFIG.top_layers)
    name = f"M = {CONFIG.replicas}, top {CONFIG.top_layers}"
    report.at_least(f"{name}: faster, scores included", eight["seconds"] / lora["seconds"], 20)
    report.at_most(f"{name}: peak memory over one TRL run's", lora["peak MiB"] / one["peak MiB"], 1)


def common_problem(
    pool: Task, policy: CausalLMPolicy, peer: Peer, report: Report, size: Size
) -> None:
    """Comparison 3: one recipe on some of `pool`, judged on the rest; parity on TRL's adapter.

    Both adapters are scored by us; TRL scores the first of the rest with its own, which is the
    parity check.
    """
    task = pool.take(np.arange(size.short))
    trained = task.take(np.flatnonzero(task.halves(1, WHOLE.seed)[0]))
    keys = fold_keys(pool.table)
    others = pool.take(np.flatnonzero(~np.isin(keys, fold_keys(trained.table))))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        lora = ours(task, policy, WHOLE, place / "ours")
        few = others.take(np.arange(min(size.scored, len(others.tokens))))
        answer = peer.run(trained, few, layers=None, save=str(place / "trl"))
        adapters = [place / "ours" / "replicas" / "0", place / "trl"]
        score_adapters(policy, others.table, adapters, place / "both", beta=WHOLE.beta)
        mine, theirs = (margins_of(others, place / "both", range(m, m + 1)) for m in (0, 1))
    row = {
        "kind": "TRL",
        "M": 1,
        "K": "all",
        "how": "measured",
        "train s": sum(answer["step_wall"]),
        "peak MiB": answer["peak_mib"],
    }
    rows = [head_elsewhere(trained, others, policy), lora, row]
    for one, margins in ((lora, mine), (row, theirs)):
        one["held-out loss"] = float(np.logaddexp(0, -margins).mean())
        one["AUROC"] = judged(margins, others.wrong)
    count, judges = len(trained.tokens), len(others.tokens)
    report.tables[f"3. train on {count} short pairs, judge on {judges} others"] = rows
    gap = bootstrap(
        lambda score, wrong, weights: auroc(score, wrong, weights) - auroc(-theirs, wrong, weights),
        -mine,
        others.wrong,
    )
    apart = parity(answer, theirs / WHOLE.beta)
    report.tables["our replica and TRL's"] = [
        {
            "AUROC ours - TRL": f"{gap.estimate:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
            "correlation of margins": float(np.corrcoef(mine, theirs)[0, 1]),
            "same sign": float(((mine > 0) == (theirs > 0)).mean()),
        }
    ]
    report.tables["TRL's adapter: our log-ratios against TRL's own"] = [apart]
    report.at_least("AUROC ours - TRL, upper end of its 90 % interval", gap.high, 0)
    name = "log-ratios of TRL's adapter, ours - TRL's over their rms"
    report.at_most(name, apart["max difference / rms"], 1e-4)


def parity(answer: dict[str, Any], ours: Float) -> dict[str, Any]:
    """Differences of our log-ratios of TRL's adapter [N] from TRL's own of the first n pairs."""
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


def run(options: Options) -> Report:
    """All three comparisons, ours and TRL in turn."""
    report = Report("LoRA replicas: noisescope against TRL")
    size = QUICK if options.quick else FULL
    model = options.model or str(smollm2())
    policy = load_causal_lm(model, max_length=MAX_LENGTH, chat_template="never")
    peer = Peer(peer_python(options, "trl", PACKAGES), model, WHOLE)
    task = ukp_convarg(options.data, policy)
    fixed = task.take(np.sort(np.random.default_rng(0).permutation(len(task.tokens))[:3000]))
    random = np.random.default_rng(1).permutation(len(fixed.tokens))
    rates = one_replica(fixed.take(random[: size.sliced]), policy, peer, report, size)
    prompts = np.array(fixed.table.column("prompt").to_pylist())
    topics = np.isin(prompts, np.unique(prompts)[: size.topics])
    eight_replicas(fixed.take(np.flatnonzero(topics)), policy, peer, report, size, rates)
    shortest = np.argsort(task.longest, kind="stable")[: size.shortest]
    shortest = task.take(np.random.default_rng(2).permutation(shortest))
    common_problem(shortest, policy, peer, report, size)
    return report


if __name__ == "__main__":
    main(__doc__, run)
