"""LoRA replicas against runs of TRL's DPOTrainer: time, memory and AUROC, in turn on one machine.

    python -m benchmarks.replicas [--quick] [--json FILE] [--peer-python VENV] [--model DIR]

TRL 1.16 runs in a venv of its own: NOISESCOPE_PEER_VENV or --peer-python names it, else it is made
once in the user's cache. By hand: `python -m venv V && V/bin/pip install torch==2.13.0 trl==1.16.0
datasets peft accelerate`. Give both one thread (OMP_NUM_THREADS=1) on a shared machine.

Data: ukp-convarg with its natural crowd noise. SmolLM2-135M-Instruct, float32, rank 16 on every
linear layer of the adapted blocks, pairs of at most 256 tokens. Four comparisons:

1. M = 1, all blocks, batch 8: both train one epoch on the same pairs, measured on both sides.
2. M = 8 with scores, top 4 blocks, whole topics of a fixed 3,000 pairs: ours runs in full; TRL
   runs a slice, and its seconds are scaled by padded tokens to eight epochs on half the pairs and
   a scoring pass over all. Two slice lengths show whether a step's cost is constant.
3. A small common problem (short arguments, all blocks, one recipe): AUROC of TRL's replica and of
   ours on pairs neither trained on, and our log-ratios of TRL's adapter against TRL's own.
4. A few short pairs of hh-harmless with 20 % planted flips: AUROC of eight heads, of eight LoRA
   replicas, and of TRL's replica on the half that our first one trained on (top 4 blocks).

Rows are marked measured or scaled. Not counted: starting TRL, loading its model,
tokenising, its first step. Its reference pass over the scored pairs counts once for all eight runs.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.harness import Options, Report, peer_python
from benchmarks.models import smollm2
from benchmarks.replicas.common import common_problem, harmless
from benchmarks.replicas.ours import CONFIG, SPEED, WHOLE, heads, ours
from benchmarks.replicas.peer import MAX_LENGTH, PACKAGES, Peer, Rates, linearity
from benchmarks.replicas.task import Task, hh_harmless, judged, margins_of, ukp_convarg
from noisescope.models.causal_lm import CausalLMPolicy, load_causal_lm

#: Shortest pairs of hh-harmless, which comparison 4 draws from.
HARMLESS = 600
SLICES = "TRL: is a step's cost constant? (seconds per 1,000 padded tokens)"


@dataclass(frozen=True)
class Size:
    """Sizes of the comparisons."""

    topics: int  # of the 32, in comparison 2
    sliced: int  # pairs of comparison 1, half of them trained on
    steps: int  # of TRL's slice in comparison 2
    scored: int  # pairs of TRL's scoring slices
    short: int  # pairs of comparison 3, half of them trained on
    shortest: int  # the shortest pairs of all, which they are drawn from; the others judge
    harmless: int  # pairs of comparison 4, of the `HARMLESS` shortest


FULL = Size(topics=3, sliced=40, steps=3, scored=8, short=200, shortest=500, harmless=64)
QUICK = Size(topics=1, sliced=24, steps=2, scored=4, short=48, shortest=120, harmless=24)


def one_replica(
    task: Task, policy: CausalLMPolicy, peer: Peer, report: Report, size: Size
) -> Rates:
    """Run comparison 1: the same epoch, all blocks, measured on both sides."""
    trained = task.take(np.flatnonzero(task.halves(1, SPEED.seed)[0]))
    with tempfile.TemporaryDirectory() as run:
        lora = ours(task, policy, SPEED, Path(run))
    few = task.take(np.arange(size.scored))
    answer = replace(peer, config=SPEED).run(trained, few, layers=None)
    rates = Rates.of(answer)
    steady, busy = (rate * sum(answer["step_tokens"]) / 1e3 for rate in rates.step)  # all alike
    pairs = min(len(trained.tokens), len(answer["step_wall"]) * SPEED.batch)
    row = {
        "kind": "TRL",
        "M": 1,
        "K": "all",
        "how": "measured",
        "train s": steady,
        "trained pairs/s": pairs / steady,
        "cpu s": busy,
        "peak MiB": answer["peak_mib"],
    }
    name = f"1. one epoch on {pairs} pairs, all blocks, batch {SPEED.batch}"
    report.tables[name] = [lora, row]
    report.tables[SLICES] = [linearity("all blocks", answer)]
    faster = lora["trained pairs/s"] / row["trained pairs/s"]
    report.at_least("M = 1, all blocks: training pairs/s over TRL's", faster, 4)
    return rates


def eight_replicas(
    task: Task, policy: CausalLMPolicy, peer: Peer, report: Report, size: Size, whole: Rates
) -> None:
    """Run comparison 2: ours in full, TRL's slice scaled."""
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
    trained = task.take(some[: SPEED.batch * size.steps])
    answer = replace(peer, config=SPEED).run(
        trained, task.take(some[: size.scored]), layers=CONFIG.top_layers
    )
    report.tables[SLICES].append(linearity(f"top {CONFIG.top_layers}", answer))
    for blocks, rates in ((CONFIG.top_layers, Rates.of(answer)), ("all", whole)):
        rows += [
            {"kind": "TRL", "M": m, "K": blocks, **rates.scaled(task, m, CONFIG)}
            for m in (CONFIG.replicas, 1)
        ]
    report.tables[f"2. replicas with scores, {len(task.tokens)} pairs"] = rows
    eight, one, every, _ = (row for row in rows if row["kind"] == "TRL")
    name = f"M = {CONFIG.replicas}, top {CONFIG.top_layers}"
    for claim, peer_row in (("faster", eight), ("faster than TRL on all blocks", every)):
        for clock in ("seconds", "cpu s"):
            ratio = peer_row[clock] / lora[clock]
            report.at_least(f"{name}, with scores: {claim}, {clock}", ratio, 20)
    report.at_most(f"{name}: peak memory over one TRL run's", lora["peak MiB"] / one["peak MiB"], 1)


def run(options: Options) -> Report:
    """Run all four comparisons, ours and TRL in turn."""
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
    pool = task.some(size.shortest, size.shortest, seed=2)
    common_problem(pool, policy, peer, report, size.short, size.scored)
    short = hh_harmless(options.data, policy).some(size.harmless, HARMLESS, seed=3)
    harmless(short, policy, peer, report)
    return report
