"""LoRA replicas against runs of TRL's DPOTrainer: time, memory and AUROC, in turn on one machine.

    python -m benchmarks.replicas [--quick] [--json FILE] [--peer-python VENV] [--model DIR]

Same pairs (a fixed 3,000 of ukp-convarg; hh-harmless with 20 % planted flips), model
(SmolLM2-135M-Instruct), adapters (rank 16 on every linear layer), objective, optimiser, batch and
token limit (pairs over it are left out: TRL drops them). A TRL replica trains on a half of the
pairs for one epoch and then scores all pairs. TRL's M = 8 is extrapolated: seconds a pair in
steady state times pairs, for training and scoring, its reference pass over the scored pairs
counted once for all eight. With --quick five of the 32 topics stand for all, and no AUROC of
TRL is measured; without it two TRL runs (complementary halves) are trained and scored in full,
which takes hours on two cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.data import truth, with_sides_swapped
from benchmarks.harness import (
    Options,
    Report,
    main,
    peak_memory_mib,
    peer_python,
    reset_peak_memory,
    run_peer,
    stopwatch,
)
from benchmarks.models import smollm2
from noisescope.datasets import load
from noisescope.features import compute_features
from noisescope.gathering import distinct_items, fold_keys
from noisescope.pairs import PreferenceDataset
from noisescope.policies.causal_lm import CausalLMPolicy, load_causal_lm
from noisescope.ranking import auroc, bootstrap
from noisescope.replicas.draws import held_out_by
from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.replicas.lora import train_lora
from noisescope.replicas.packed import LoraConfig

Bool = NDArray[np.bool_]
PEER = Path(__file__).with_name("replicas_trl.py")
PEER_PACKAGES = ("torch==2.13.0", "trl==1.16.0", "datasets", "peft", "accelerate")
MAX_LENGTH = 256
CONFIG = LoraConfig(replicas=8, rank=16, alpha=32.0)


@dataclass(frozen=True)
class Task:
    """Pairs with known wrong labels, [N]."""

    dataset: PreferenceDataset
    wrong: Bool


def tasks(options: Options) -> dict[str, Task]:
    """The two datasets, cut to what --quick allows."""
    random = np.random.default_rng(options.seed)
    ukp = load(options.data / "ukp-convarg" / "natural.parquet")
    wrong = truth(ukp, options.data / "ukp-convarg" / "truth.parquet")
    kept = np.sort(random.permutation(len(ukp))[:3000])
    if options.quick:  # whole topics, so that responses recur as often as in the 3,000
        prompts = ukp.table.column("prompt").take(kept).to_pylist()
        topics = sorted(set(prompts))[:5]
        kept = kept[[prompt in topics for prompt in prompts]]
    made = {"ukp-convarg": Task(replace(ukp, table=ukp.table.take(kept)), wrong[kept])}
    if not options.quick:
        harmless = load(options.data / "hh-harmless" / "test.jsonl.gz")
        swap = random.random(len(harmless)) < 0.2
        made["hh-harmless"] = Task(with_sides_swapped(harmless, swap), swap)
    return made


def fitting(task: Task, policy: CausalLMPolicy) -> Task:
    """The pairs no side of which is over the token limit: TRL silently drops the others."""
    items, chosen, rejected = distinct_items(task.dataset.table)
    whole = np.array([not (e.cut_prompt or e.cut_response) for e in policy.encode(items)])
    kept = np.flatnonzero(whole[chosen] & whole[rejected])
    table = task.dataset.table.take(kept)
    return Task(replace(task.dataset, table=table), task.wrong[kept])


def judged(task: Task, margins: NDArray[np.floating[Any]], seed: int) -> str:
    """AUROC of minus the margin with its 90 % bootstrap interval."""
    found = bootstrap(auroc, -margins.astype(np.float64), task.wrong, seed=seed)
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


def held_out_mean(task: Task, run: Path) -> NDArray[np.float64]:
    """Mean held-out margin at the last step, in the order of the task's pairs, NaN if none."""
    table = pq.read_table(run / "margins").to_pandas()
    table = table[table.held_out & (table.step == table.step.max())]
    mean = table.groupby("pair_id").margin.mean()
    ids = task.dataset.table.column("pair_id").to_pylist()
    ordered: NDArray[np.float64] = mean.reindex(ids).to_numpy(np.float64)
    return ordered


def ours(task: Task, policy: CausalLMPolicy, config: LoraConfig, seed: int) -> dict[str, Any]:
    """One run of M packed replicas, scores included."""
    reset_peak_memory()
    with tempfile.TemporaryDirectory() as scratch, stopwatch() as spent:
        summary = train_lora(policy, task.dataset.table, config, Path(scratch))
        margins = held_out_mean(task, Path(scratch))
    seen = ~np.isnan(margins)
    part = Task(task.dataset, task.wrong[seen])
    trained = config.replicas * summary.steps * config.batch
    return {
        "kind": "lora",
        "M": config.replicas,
        "K": config.top_layers or "all",
        "seconds": spent["seconds"],
        "cpu s": spent["cpu"],
        **{f"{name} s": value for name, value in summary.seconds.items()},
        "pairs/s": trained / (summary.seconds["train"] + summary.seconds["trunk"]),
        "peak MiB": peak_memory_mib(),
        "AUROC": judged(part, margins[seen], seed),
        "held-out loss": summary.held_out_loss[summary.best_step],
    }


def heads(task: Task, policy: CausalLMPolicy, replicas: int, seed: int) -> dict[str, Any]:
    """Head replicas on the same pairs, feature pass included."""
    reset_peak_memory()
    with tempfile.TemporaryDirectory() as scratch, stopwatch() as spent:
        items, chosen, rejected = distinct_items(task.dataset.table)
        features = compute_features(policy, items, Path(scratch), lambda done, total, note: None)
        keys = fold_keys(task.dataset.table)
        fit = fit_heads(features, chosen, rejected, keys, HeadConfig(replicas=replicas))
    return {
        "kind": "head",
        "M": replicas,
        "seconds": spent["seconds"],
        "cpu s": spent["cpu"],
        "peak MiB": peak_memory_mib(),
        "AUROC": judged(task, fit.margins.mean(0), seed),
    }


def peer_rows(policy: CausalLMPolicy, table: pa.Table) -> list[dict[str, str]]:
    """TRL's prompt, chosen and rejected texts, rendered as ours are (TRL adds the end token)."""
    end = policy.tokenizer.eos_token
    items, chosen, rejected = distinct_items(table)
    texts = [policy.encoder.render(item) for item in items]
    return [
        {
            "prompt": texts[w][0],
            "chosen": texts[w][1].removesuffix(end),
            "rejected": texts[l][1].removesuffix(end),
        }
        for w, l in zip(chosen.tolist(), rejected.tolist(), strict=True)  # noqa: E741
    ]


def peer(
    python: Path, rows: list[dict[str, str]], train: NDArray[np.int64], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """One TRL run on the pairs `train`, scoring the first `score` pairs."""
    import torch

    given = {
        "train": [rows[i] for i in train],
        "rank": CONFIG.rank,
        "alpha": CONFIG.alpha,
        "beta": CONFIG.beta,
        "learning_rate": CONFIG.learning_rate,
        "max_length": MAX_LENGTH,
        "threads": torch.get_num_threads(),
        "sampling": "random",
        "precompute": False,
        **settings,
        "score": rows[: settings["score"]],
    }
    given["warmup_steps"] = round(CONFIG.warmup * given["max_steps"])
    answer = run_peer(python, PEER, given)
    if answer["scored"] != len(given["score"]):
        raise RuntimeError(f"TRL scored {answer['scored']} of {len(given['score'])} pairs")
    return answer


def peer_cost(answer: Mapping[str, Any], batch: int, pairs: int, trained: int) -> dict[str, Any]:
    """Steady-state seconds of TRL: a training pair, a scored pair, and of 1 and M runs."""
    steps = answer["step_wall"]
    step = median(steps[1:] or steps) / batch
    policy, reference = (
        answer[f"score_{k}"][0] / answer["scored"] for k in ("policy", "reference")
    )
    return {
        "pairs/s": 1 / step,
        "cpu s/pair": median(answer["step_cpu"]) / batch,
        "score s/pair": policy + reference,
        "M=1 s": trained * step + pairs * (policy + reference),
        "M s": CONFIG.replicas * (trained * step + pairs * policy) + pairs * reference,
        "peak MiB": answer["peak_mib"],
    }


def step_rate(
    task: Task, policy: CausalLMPolicy, batch: int, steps: int, layers: int | None
) -> dict[str, Any]:
    """Pairs a second of M = 1 packed training, its share of the reference pass included."""
    reset_peak_memory()
    config = replace(CONFIG, replicas=1, batch=batch, steps=steps, top_layers=layers)
    times: list[float] = []

    def clock(stage: str, done: int, total: int) -> None:
        if stage == "training":
            times.append(perf_counter())

    with tempfile.TemporaryDirectory() as scratch, stopwatch() as spent:
        summary = train_lora(policy, task.dataset.table, config, Path(scratch), clock)
    step = median(after - before for before, after in pairwise(times)) / batch
    reference = summary.seconds["trunk"] / (len(task.dataset) / 2)
    return {
        "kind": "lora",
        "M": 1,
        "K": layers or "all",
        "batch": batch,
        "pairs/s": 1 / (step + reference),
        "pairs/s without reference": 1 / step,
        "cpu s": spent["cpu"],
        "peak MiB": peak_memory_mib(),
    }


def run(options: Options) -> Report:
    """Both datasets, ours and TRL in turn."""
    report = Report("LoRA replicas: noisescope against TRL")
    model = options.model or str(smollm2())
    policy = load_causal_lm(model, max_length=MAX_LENGTH, chat_template="never")
    python = peer_python(options, "trl", PEER_PACKAGES)
    for name, task in tasks(options).items():
        compare(report, name, fitting(task, policy), policy, python, model, options)
    return report


def compare(
    report: Report,
    name: str,
    task: Task,
    policy: CausalLMPolicy,
    python: Path,
    model: str,
    options: Options,
) -> None:
    """Fill the report's tables and targets for one dataset."""
    rows = peer_rows(policy, task.dataset.table)
    halves = ~held_out_by(fold_keys(task.dataset.table), seed=options.seed, replicas=2)
    trained = int(halves[0].sum())
    short = {"batch": 8, "seed": options.seed, "model": model, "score": 16, "max_steps": 3}
    rates = [step_rate(task, policy, 8, 4, None)]
    all_layers = peer(python, rows, np.flatnonzero(halves[0]), short | {"layers": None})
    cost = peer_cost(all_layers, 8, len(rows), trained)
    rates.append({"kind": "TRL", "M": 1, "K": "all", "batch": 8, **cost})
    report.tables[f"{name}: one training step, adapters on all layers"] = rates
    report.at_least(f"{name}: M = 1 step, pairs/s over TRL", rates[0]["pairs/s"] * _slow(cost), 4)

    config = replace(CONFIG, seed=options.seed)
    lora = ours(task, policy, config, options.seed)
    top = short | {"layers": config.top_layers, "batch": config.batch, "max_steps": 2}
    if options.quick:
        answers = [peer(python, rows, np.flatnonzero(halves[0]), top)]
    else:
        whole = top | {"score": len(rows), "max_steps": trained // config.batch}
        answers = [peer(python, rows, np.flatnonzero(half), whole) for half in halves]
    trl = peer_cost(answers[0], config.batch, len(rows), trained)
    judged_trl = {} if options.quick else {"AUROC": judged(task, _held(answers, halves), 0)}
    report.tables[f"{name}: replicas with scores, {len(rows):,} pairs"] = [
        lora,
        heads(task, policy, config.replicas, options.seed),
        {
            "kind": "TRL",
            "M": config.replicas,
            "K": config.top_layers,
            "seconds": trl["M s"],
            **judged_trl,
        },
        {"kind": "TRL", "M": 1, "K": config.top_layers, "seconds": trl["M=1 s"], **trl},
    ]
    report.at_least(
        f"{name}: M = {config.replicas} with scores, faster by", trl["M s"] / lora["seconds"], 20
    )
    report.at_most(f"{name}: peak MiB over one TRL run", lora["peak MiB"] / trl["peak MiB"], 1)


def _slow(cost: Mapping[str, Any]) -> float:
    """Seconds TRL takes for a pair."""
    return 1 / float(cost["pairs/s"])


def _held(answers: list[dict[str, Any]], halves: Bool) -> NDArray[np.float64]:
    """Each pair's margin from the run that did not train on it."""
    first, second = (np.array(answer["margins"]) for answer in answers)
    return np.where(halves[0], second, first)


if __name__ == "__main__":
    main(__doc__, run)
