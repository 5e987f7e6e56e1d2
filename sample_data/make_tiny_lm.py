"""Make `sample_data/models/tiny-lm`: the small language model the demo audits with.

    python sample_data/make_tiny_lm.py            # rewrites sample_data/models/tiny-lm

A Llama of 1.5 million parameters learns to write the conversations of `make_hh_rlhf.py`: mostly
faultless answers with some faulty ones among them, as text found in the world has. It never sees
a preference or a pair of the audited dataset. One thread, a function of SEED.
"""

from __future__ import annotations

import math
import random
import sys
import time
from pathlib import Path
from typing import Any

from make_hh_rlhf import transcripts

HERE = Path(__file__).resolve().parent
SEED = 7
DOCUMENTS = 30_000
FAULTY = 0.25
VOCABULARY = 2048
CONTEXT = 512
BATCH, LENGTH = 16, 256
PEAK_RATE, WARM_UP = 4e-3, 50
PAD, END, ROLES = "<|pad|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] "
    "+ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def documents(seed: int, n: int) -> list[str]:
    """Render n conversations as the chat template does; FAULTY of them end in a faulty answer."""
    rng = random.Random(seed)
    texts = []
    for turns, good, bad in transcripts(seed, n):
        reply = bad if rng.random() < FAULTY else good
        told = [(turn.role, turn.content) for turn in turns] + [("assistant", reply)]
        texts.append("".join(f"<|{role}|>{content}{END}" for role, content in told))
    return texts


def train_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts[:8000], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, chat_template=TEMPLATE
    )


def make_model(vocabulary: int, end: int, pad: int) -> Any:
    """Return a Llama of six layers, 128 wide, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )


def train(model: Any, tokens: Any) -> float:
    """One pass over `tokens` in rows of LENGTH, cosine schedule; returns the last mean loss."""
    import torch

    rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    rows = rows[torch.randperm(len(rows))]
    steps = len(rows) // BATCH
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    began, mean = time.monotonic(), math.log(VOCABULARY)
    for step in range(steps):
        rate = PEAK_RATE * min(1.0, (step + 1) / WARM_UP)
        rate *= 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = rows[step * BATCH : (step + 1) * BATCH]
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        mean += 0.05 * (float(loss.detach()) - mean)
        if step % 50 == 49:
            seconds = time.monotonic() - began
            print(f"step {step + 1}/{steps} loss {mean:.3f} {seconds:.0f} s", file=sys.stderr)
    return mean


def write(directory: Path, seed: int = SEED, n: int = DOCUMENTS) -> None:
    """Train and save tokenizer and float16 safetensors."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    texts = documents(seed, n)
    tokenizer = train_tokenizer(texts)
    ids = [id for row in tokenizer(texts)["input_ids"] for id in row]
    model = make_model(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    train(model, torch.tensor(ids))
    model.eval().half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for path in directory.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    write(HERE / "models" / "tiny-lm")
