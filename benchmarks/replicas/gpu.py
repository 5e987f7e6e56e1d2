"""Measure packed LoRA replicas of random Llamas: throughput, FLOP utilisation, memory.

    python -m benchmarks.replicas.gpu [--device cuda] [--sizes 1b 3b 7b] [--peer-python VENV]

Random weights cost the same as trained ones, so no download is needed; the results of training mean
nothing. Two runs a size: M = 1 on every block with pairs that share no response (the work of an
ordinary trainer), and M = 8 on the top four blocks with responses that recur. bfloat16 if the
device is faster with it. With --peer-python (or NOISESCOPE_PEER_VENV) TRL's DPOTrainer runs the
first of them on the same token ids, at its own default of eight pairs a forward.

Utilisation = FLOPs counted by `noisescope.replicas.cost` / seconds / the device's peak. The peak is
the dense bfloat16 figure of its data sheet if `PEAKS` has the device, else a measured square matrix
product; the table names which.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import pyarrow as pa

from benchmarks.harness import Options, Report, peak_memory_mib, publish, run_peer
from benchmarks.replicas.peer import SCRIPT
from noisescope.models import Item, ModelIdentity
from noisescope.models.tokenize import Encoded
from noisescope.pairs import Pair, to_table
from noisescope.replicas.config import LoraConfig
from noisescope.replicas.cost import LoraCost
from noisescope.replicas.lora_text import train_lora

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)
#: Llama 3.2 1B and 3B, Llama 2 7B; `tiny` is for tests.
SIZES: dict[str, dict[str, Any]] = {
    name: dict(zip(SHAPE, shape, strict=True))
    for name, shape in {
        "tiny": (64, 128, 6, 4, 2, 512, True),
        "1b": (2048, 8192, 16, 32, 8, 128_256, True),
        "3b": (3072, 8192, 28, 24, 8, 128_256, True),
        "7b": (4096, 11_008, 32, 32, 32, 32_000, False),
    }.items()
}
#: Dense bfloat16 FLOP/s of data sheets, by a word of the device's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "A10": 125e12}


@final
@dataclass(frozen=True)
class Workload:
    """Pairs to train on: `pairs` over `responses` of `tokens` tokens, eight to a prompt."""

    pairs: int
    responses: int
    tokens: int
    vocabulary: int

    def table(self) -> pa.Table:
        """Make pairs whose texts are token ids in words."""
        random = np.random.default_rng(0)

        def text(size: int) -> str:
            return " ".join(map(str, random.integers(3, self.vocabulary, size)))

        prompts = [text(self.tokens // 4) for _ in range(-(-self.responses // 8))]
        bodies = [text(self.tokens) for _ in range(self.responses)]
        made = []
        for i in range(self.pairs):
            if self.responses == 2 * self.pairs:
                a, b = 2 * i, 2 * i + 1
            else:
                group = 8 * int(random.integers(len(prompts)))
                a, b = group + random.choice(min(8, self.responses - group), 2, replace=False)
            made.append(Pair(prompts[a // 8], bodies[a], bodies[b], pair_id=f"p{i}"))
        return to_table(made)


@final
@dataclass(frozen=True)
class RandomPolicy:
    """A text policy whose texts are token ids already."""

    model: PreTrainedModel
    identity: ModelIdentity
    rows: str = "packed"
    pictures: None = None

    def encode(self, items: Sequence[Item]) -> list[Encoded]:
        """Return ids of prompt and response."""
        sides = [(str(item.prompt), str(item.response)) for item in items]
        return [Encoded(*(tuple(map(int, text.split())) for text in side)) for side in sides]


def random_llama(size: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Make a Llama of `size` with random weights."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**SIZES[size], max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    return model.eval()


def peak_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return (highest FLOP/s of the device, source of the figure)."""
    import torch

    from noisescope.models.device import matmul_rate

    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for word, rate in PEAKS.items():
            if word in name:
                return rate, f"data sheet of {word}"
    return matmul_rate(device, dtype), "measured product"


def forget(device: torch.device) -> None:
    """Begin a new peak of memory."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> float | None:
    """Return the highest memory since `forget`: of the device, or of the process without one."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory_mib()


def measured(
    size: str, policy: RandomPolicy, table: pa.Table, config: LoraConfig, where: torch.device
) -> dict[str, Any]:
    """Run packed replicas once, after a run of one step that warms up."""
    costs: list[LoraCost] = []
    with tempfile.TemporaryDirectory() as scratch:
        train_lora(policy, table, replace(config, steps=1), Path(scratch) / "warm")
        forget(where)
        done = train_lora(policy, table, config, Path(scratch) / "run", estimate=costs.append)
    rate, source = peak_rate(where, policy.model.dtype)
    (cost,), spent = costs, done.seconds
    work = {"reference": cost.reference, "training": cost.training, "scoring": cost.scoring}
    seconds = {"reference": spent["trunk"], "training": spent["train"], "scoring": spent["score"]}
    return {
        "kind": "lora",
        "size": size,
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "M": config.replicas,
        "K": config.top_layers or "all",
        "trained pairs/s": config.replicas * config.batch * done.steps / seconds["training"],
        **{f"{stage} s": seconds[stage] for stage in work},
        **{f"{stage} MFU": work[stage] / seconds[stage] / rate for stage in work},
        "peak MiB": peak_mib(where),
        "peak FLOP/s": f"{rate:.3g} ({source})",
    }


def trl_row(
    python: Path, size: str, policy: RandomPolicy, table: pa.Table, config: LoraConfig
) -> dict[str, Any]:
    """Run TRL's DPOTrainer on the same pairs, model and adapters; its first step is not counted."""
    rows = [
        {
            "prompt_ids": [int(word) for word in row["prompt"].split()],
            "chosen_ids": [int(word) for word in row["chosen"].split()],
            "rejected_ids": [int(word) for word in row["rejected"].split()],
        }
        for row in table.to_pylist()
    ]
    device = policy.model.device.type
    with tempfile.TemporaryDirectory() as scratch:
        policy.model.save_pretrained(scratch)
        given = {
            "model": scratch,
            "train": rows,
            "score": [],
            "rank": config.rank,
            "alpha": config.alpha,
            "layers": None,
            "beta": config.beta,
            "learning_rate": config.learning_rate,
            "batch": config.batch,
            "accumulation": 1,
            "max_steps": config.steps,
            "warmup_steps": 0,
            "max_length": None,
            "precompute": False,
            "workers": 0,
            "attention": "sdpa",
            "threads": 1,
            "seed": 0,
            "save": None,
            "device": device,
            "dtype": str(policy.model.dtype).removeprefix("torch."),
        }
        answer = run_peer(python, SCRIPT, given)
    seconds = sum(answer["step_wall"][1:])
    return {
        "kind": f"TRL {answer['version']}",
        "size": size,
        "dtype": given["dtype"],
        "M": 1,
        "K": "all",
        "trained pairs/s": config.batch * (len(answer["step_wall"]) - 1) / seconds,
        "training s": seconds,
        "peak MiB": answer["peak_mib"],
    }


def run(device: str, sizes: Sequence[str], tokens: int, steps: int, peer: Path | None) -> Report:
    """Run every size on one device, ours and TRL in turn."""
    from noisescope.models.device import pick_device, pick_dtype

    where = pick_device(device)
    dtype = pick_dtype("auto", where)
    report = Report(f"LoRA replicas of random Llamas on {where}")
    rows: list[dict[str, Any]] = []
    whole = LoraConfig(replicas=1, top_layers=None, batch=8, cluster=1, steps=steps, tokens=16_384)
    eight = LoraConfig(replicas=8, batch=16, cluster=16, steps=steps, tokens=16_384)
    for size in sizes:
        vocabulary = SIZES[size]["vocab_size"]
        policy = RandomPolicy(random_llama(size, where, dtype), ModelIdentity(size, None, size))
        single = Workload(16 * steps, 32 * steps, tokens, vocabulary).table()
        shared = Workload(32 * steps, 16 * steps, tokens, vocabulary).table()
        ours = measured(size, policy, single, whole, where)
        rows += [ours, measured(size, policy, shared, eight, where)]
        if peer is not None:
            theirs = trl_row(peer, size, policy, single, whole)
            rows.append(theirs)
            ratio = ours["trained pairs/s"] / theirs["trained pairs/s"]
            report.at_least(f"{size}, M = 1, all blocks: pairs/s over TRL's", ratio, 1.3)
        del policy
        forget(where)
    report.tables[f"{tokens} tokens a response, {steps} steps"] = rows
    return report


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cpu or auto")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1b", "3b", "7b"])
    parser.add_argument("--tokens", type=int, default=384, help="tokens of a response")
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps")
    parser.add_argument("--peer-python", type=Path, default=os.environ.get("NOISESCOPE_PEER_VENV"))
    parser.add_argument("--json", type=Path, help="write machine, results and targets here")
    given = parser.parse_args()
    peer = None if given.peer_python is None else Path(given.peer_python)
    if peer is not None and peer.is_dir():
        peer = peer / "bin" / "python"
    report = run(given.device, given.sizes, given.tokens, given.steps, peer)
    publish(report, Options(False, given.json, peer, Path(), None, 0))


if __name__ == "__main__":
    main()
