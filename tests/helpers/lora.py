"""LoRA replicas of a tiny model: its policy, pairs, settings and reference log-probabilities."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from helpers.tiny_models import save, tiny_llama, tiny_tokenizer
from noisescope.models import ModelIdentity
from noisescope.models.tokenize import Encoder
from noisescope.pairs import Pair, to_table
from noisescope.replicas.config import LoraConfig

CONFIG = LoraConfig(
    replicas=3, rank=4, top_layers=2, steps=6, batch=4, checkpoints=2, save_every=1, tokens=300
)


WORDS = "bread dough water oven salt no yes why knead wait hot cold".split()  # noqa: SIM905


class TinyPolicy:
    """A text policy over a tiny model with a chat template."""

    def __init__(self, model: object) -> None:
        self.model = model
        self.identity = ModelIdentity("tiny", None, "tiny-fingerprint")
        self.rows, self.pictures = "packed", None
        self.encoder = Encoder(tiny_tokenizer(), 96, True)

    def encode(self, items):
        return self.encoder.encode(items)


def pairs(n: int = 24):
    """Pairs over few prompts and responses that recur; longer responses are preferred."""
    random = np.random.default_rng(0)
    made = []
    for i in range(n):
        prompt = f"Question {i % 3}?"
        short, long = (
            " ".join(random.choice(WORDS[k : k + 3], size=size)) for k, size in ((0, 2), (5, 5))
        )
        made.append(Pair(prompt, long, short, pair_id=f"p{i}"))
    return to_table(made)


def plain_logps(model, corpus) -> torch.Tensor:
    """log pi(response | prompt) of each item by the model's own full forward, one at a time."""
    found = []
    for i, response in enumerate(corpus.responses):
        prompt = corpus.prompts[corpus.prompt_of[i]]
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        found.append(sum(logits[len(prompt) - 1 + j, t] for j, t in enumerate(response)))
    return torch.stack(found)


def read(run: Path):
    return pq.read_table(run / "margins").to_pandas()


LORA = ("--kind", "lora", "--replicas", "2", "--lora-r", "2", "--layers", "top-2")


def command(name: str, place: Path, *options: str) -> list[str]:
    data, model = place / "pairs.jsonl", place / "model"
    return [name, str(data), "--model", str(model), "--dtype", "float32", *options]


def evidence_bytes(directory: Path) -> dict[str, bytes]:
    """Every file of margins, averages and adapters, and the state to continue from."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for folder in ("margins", "averages", "replicas")
        for path in (directory / folder).rglob("[!.]*")
        if path.is_file()
    }


def tiny_place(where: Path) -> Path:
    """Fill a directory with a tiny model and 24 pairs."""
    save(where / "model", tiny_llama(), tiny_tokenizer())
    rows = pairs().select(["prompt", "chosen", "rejected", "pair_id"]).to_pylist()
    (where / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where
