"""The peer of `benchmarks.replicas`: one TRL DPOTrainer run and a scoring pass, in TRL's own venv.

JSON on stdin: model, train and score (lists of {prompt, chosen, rejected}), rank, alpha, layers
(null: all), batch, max_steps, learning_rate and the other settings `trainer_of` reads. The last
line of stdout is JSON: [wall, CPU] seconds of steps and of scoring, margins, peak MiB.
TRL runs at its fastest settings on a CPU: float32, no gradient checkpointing, parts of 8 pairs
(less padding), no evaluation, logging or saving while training; `group_by_length` refuses
DPO rows.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock(TrainerCallback):
    """Wall and CPU time at the end of every optimiser step."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.times:
            self.times.append((time.perf_counter(), time.process_time()))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append((time.perf_counter(), time.process_time()))


def trainer_of(given: dict[str, Any], clock: Clock) -> DPOTrainer:
    """A DPOTrainer as its documentation sets one up."""
    set_seed(given["seed"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    layers = given["layers"]
    depth = model.config.num_hidden_layers
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=given["rank"],
        lora_alpha=given["alpha"],
        target_modules=LINEAR,
        layers_to_transform=None if layers is None else list(range(depth - layers, depth)),
    )
    settings = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=min(8, given["batch"]),
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=max(1, given["batch"] // 8),
        learning_rate=given["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=given["warmup_steps"],
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=given["max_steps"],
        num_train_epochs=1,
        beta=given["beta"],
        max_length=given["max_length"],
        gradient_checkpointing=False,
        train_sampling_strategy=given["sampling"],
        precompute_ref_log_probs=given["precompute"],
        bf16=False,
        use_cpu=True,
        seed=given["seed"],
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    return DPOTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(given["train"]),
        processing_class=AutoTokenizer.from_pretrained(given["model"]),
        peft_config=adapter,
        callbacks=[clock],
    )


def score(trainer: DPOTrainer, rows: list[dict[str, str]]) -> dict[str, Any]:
    """Margins of `rows` in order through TRL's collator and fused head, longest pairs together.

    Policy and reference passes are timed apart: one reference pass can serve several runs.
    """
    data = trainer._prepare_dataset(
        Dataset.from_list(rows), trainer.processing_class, trainer.args, "score"
    )
    sizes = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in data]
    order = sorted(range(len(data)), key=lambda i: sizes[i])
    model, size = trainer.model.eval(), trainer.args.per_device_eval_batch_size
    margins, spent = [0.0] * len(data), {"policy": [0.0, 0.0], "reference": [0.0, 0.0]}
    for start in range(0, len(order), size):
        places = order[start : start + size]
        batch = trainer.data_collator([data[i] for i in places])
        labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        found = []
        for name, adapters in (("policy", nullcontext()), ("reference", model.disable_adapter())):
            wall, cpu = time.perf_counter(), time.process_time()
            with torch.no_grad(), adapters:
                output = model(**batch, labels=labels, fused_lm_head=True, use_cache=False)
            found.append(output.log_probs.sum(1))
            spent[name][0] += time.perf_counter() - wall
            spent[name][1] += time.process_time() - cpu
        chosen, rejected = (found[0] - found[1]).chunk(2)
        for place, ratio in zip(places, (chosen - rejected).tolist(), strict=True):
            margins[place] = trainer.beta * ratio
    return {"margins": margins, "scored": len(data), **{f"score_{k}": v for k, v in spent.items()}}


def peak_mib() -> float:
    """Highest resident set of this process alone (ru_maxrss would inherit the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Train, score, report."""
    given = json.loads(sys.stdin.read())
    torch.set_num_threads(given["threads"])
    clock = Clock()
    started = time.perf_counter()
    trainer = trainer_of(given, clock)
    ready = time.perf_counter()
    trainer.train()
    answer = {
        "version": trl.__version__,
        "setup_seconds": ready - started,
        "step_wall": [b[0] - a[0] for a, b in zip(clock.times, clock.times[1:], strict=False)],
        "step_cpu": [b[1] - a[1] for a, b in zip(clock.times, clock.times[1:], strict=False)],
        **(score(trainer, given["score"]) if given["score"] else {}),
        "peak_mib": peak_mib(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
