"""Run TRL's DPOTrainer once, with a scoring pass, in TRL's own venv: the peer of the replicas.

JSON on stdin: model, train and score (lists of {prompt_ids, chosen_ids, rejected_ids}: from text,
TRL may count the end of a prompt to the response), rank, alpha, layers (null: all), batch,
accumulation, max_steps, learning_rate and the other settings `trainer_of` reads; `save` names a
directory for the trained adapter or is null; `device` and `dtype` set the device and number type.
The last line of stdout is JSON: wall and CPU seconds and padded tokens of every step and of
scoring, log-probabilities of both sides under policy and reference, peak MiB.
Fixed, because nothing else is faster: no gradient checkpointing, no evaluation, logging or saving
while training. TRL 1.16 itself turns `padding_free` off, and `group_by_length` refuses DPO rows.
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
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
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


class CountingTrainer(DPOTrainer):
    """A DPOTrainer of rows that are token ids already; counts the padded tokens of every step."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        self.tokens = [*getattr(self, "tokens", []), inputs["input_ids"].numel()]
        return super().training_step(model, inputs, *rest, **named)


def trainer_of(given: dict[str, Any], clock: Clock) -> CountingTrainer:
    """Build a DPOTrainer as its documentation does."""
    set_seed(given["seed"])
    model = AutoModelForCausalLM.from_pretrained(
        given["model"], dtype=given["dtype"], attn_implementation=given["attention"]
    )
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
        per_device_train_batch_size=given["batch"] // given["accumulation"],
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=given["accumulation"],
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
        precompute_ref_log_probs=given["precompute"],
        bf16=given["dtype"] == "bfloat16",
        use_cpu=given["device"] == "cpu",
        seed=given["seed"],
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=given["workers"],
    )
    return CountingTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(given["train"]),
        processing_class=tokenizer_of(given["model"]),
        peft_config=adapter,
        callbacks=[clock],
    )


def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; one that only pads if a random model has none."""
    if (Path(model) / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(model)
    words = {f"<{name}>": i for i, name in enumerate(("unk", "pad", "eos"))}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )


def score(trainer: DPOTrainer, data: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Return log-probabilities of `data` in order by TRL's collator and head, long pairs together.

    Policy and reference passes are timed separately: one reference pass can serve several runs.
    """
    sizes = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in data]
    order = sorted(range(len(data)), key=lambda i: sizes[i])
    model, size = trainer.model.eval(), trainer.args.per_device_eval_batch_size
    spent = {"policy": [0.0, 0.0], "reference": [0.0, 0.0]}
    logps = {name: [[0.0, 0.0] for _ in order] for name in spent}
    tokens = 0
    for start in range(0, len(order), size):
        places = order[start : start + size]
        batch = trainer.data_collator([data[i] for i in places])
        labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        tokens += labels.numel()
        for name, adapters in (("policy", nullcontext()), ("reference", model.disable_adapter())):
            wall, cpu = time.perf_counter(), time.process_time()
            with torch.no_grad(), adapters:
                output = model(**batch, labels=labels, fused_lm_head=True, use_cache=False)
            spent[name][0] += time.perf_counter() - wall
            spent[name][1] += time.process_time() - cpu
            sides = output.log_probs.sum(1).view(2, -1).T.tolist()  # chosen, then rejected
            for place, both in zip(places, sides, strict=True):
                logps[name][place] = both
    return {"scored": len(data), "score_tokens": tokens, "score_spent": spent, "logps": logps}


def peak_mib() -> float:
    """Return the highest memory of the GPU if one was used, else the resident set of this process.

    (ru_maxrss would inherit the parent's.)
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
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
    if given["save"]:
        trainer.model.save_pretrained(given["save"], safe_serialization=True)
    parts = given["accumulation"]
    answer = {
        "version": trl.__version__,
        "setup_seconds": ready - started,
        "step_wall": [b[0] - a[0] for a, b in zip(clock.times, clock.times[1:], strict=False)],
        "step_cpu": [b[1] - a[1] for a, b in zip(clock.times, clock.times[1:], strict=False)],
        "step_tokens": [
            sum(trainer.tokens[i : i + parts]) for i in range(0, len(trainer.tokens), parts)
        ],
        **(score(trainer, given["score"]) if given["score"] else {}),
        "peak_mib": peak_mib(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
