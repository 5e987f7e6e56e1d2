"""Train a tiny flow-matching transformer on captioned emoji, once, and audit flipped pairs with it.

    python -m benchmarks.emoji_flow [--data DIR] [--json FILE]

A PixArtSigmaPipeline whose scheduler samples a flow (x_t = (1 - t) z + t eps, target eps - z):
the autoencoder of the bundled tiny-sd as it is, a T5 encoder and a DiT of four blocks from random.
Pairs (400 of them), flips and heads are those of `benchmarks.images`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import emoji
from benchmarks.detect import judge, scores_of, uniform
from benchmarks.harness import ROOT, Options, Report, main, peak_memory_mib
from benchmarks.images.scorers import BETA, RHO, loaded, material
from benchmarks.models import cache
from noisescope.scoring.metrics import auroc

WIDTH, HEADS, BLOCKS = 96, 6, 4
TOKENS = 32
PAIRS, QUICK_PAIRS = 800, 400
STEPS, BATCH, PEAK = 1_000, 16, 2e-3
SHIFT = 1.0


def pipeline(data: Path) -> Path:
    """Return the directory of the trained pipeline; train it if missing."""
    target = cache() / "tiny-emoji-flow-1"
    if not (target / "model_index.json").is_file():
        print(f"training {target} on emoji (minutes)", file=sys.stderr)
        scratch = target.with_name(f"{target.name}.partial")
        made = train([one for one in emoji.read(data) if not one.unseen])
        made.save_pretrained(scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    return target


def train(pictures: list[emoji.Emoji]) -> Any:
    """Train a pipeline on these pictures."""
    import make_tiny_sd
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(emoji.SEED)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(emoji.SEED)
    vae = AutoencoderKL.from_pretrained(
        ROOT / "sample_data" / "models" / "tiny-sd", subfolder="vae", torch_dtype=torch.float32
    )
    clean = make_tiny_sd.pixels([one.pixels for one in pictures])
    scale = float(make_tiny_sd.encode(vae, clean[:512]).std())
    vae.register_to_config(scaling_factor=round(1 / scale, 4))
    latents = make_tiny_sd.encode(vae, clean) * vae.config.scaling_factor
    captions = [one.name for one in pictures]
    made = untrained(vae, captions)
    _fit(made, latents, captions, generator)
    return made


def untrained(vae: Any, captions: list[str]) -> Any:
    """Build the pipeline with a random text encoder and transformer."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    found = dict.fromkeys(word for caption in captions for word in caption.split())
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in found)]
    pieces += sorted({letter for caption in captions for letter in caption} | {"▁"} - {" "})
    words = T5Tokenizer(
        vocab=[(piece, -float(n > 2)) for n, piece in enumerate(pieces)], extra_ids=0
    )
    config = T5Config(
        vocab_size=len(words),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return PixArtSigmaPipeline(
        tokenizer=words,
        text_encoder=T5EncoderModel(config),
        vae=vae,
        transformer=PixArtTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            cross_attention_dim=WIDTH,
            num_layers=BLOCKS,
            in_channels=4,
            out_channels=4,
            sample_size=8,
            patch_size=1,
            caption_channels=64,
        ),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=SHIFT
        ),
    )


def _fit(made: Any, latents: Any, captions: list[str], generator: Any) -> None:
    """Train velocity prediction at uniform times, one caption in ten emptied."""
    import make_tiny_sd
    import torch
    from torch.nn import functional

    text, model = made.text_encoder.train(), made.transformer.train()
    coded = made.tokenizer(
        [*captions, ""],
        padding="max_length",
        max_length=TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    parameters = [*text.parameters(), *model.parameters()]
    adam, cycle = make_tiny_sd.optimiser(parameters, PEAK, STEPS)
    recent = 1.0
    for step in range(STEPS):
        rows = torch.randint(len(latents), (BATCH,), generator=generator)
        empty = torch.rand(BATCH, generator=generator) < emoji.EMPTY_CAPTION_SHARE
        chosen = torch.where(empty, len(captions), rows)
        mask = coded.attention_mask[chosen]
        longest = int(mask.sum(1).max())
        mask = mask[:, :longest]
        states = text(coded.input_ids[chosen, :longest], attention_mask=mask)[0]
        t = torch.rand(BATCH, generator=generator)
        eps = torch.randn(latents[rows].shape, generator=generator)
        share = t.view(-1, 1, 1, 1)
        guess = model(
            (1 - share) * latents[rows] + share * eps,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=1000 * t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        loss = functional.mse_loss(guess, eps - latents[rows])
        emoji.take_step(loss, parameters, adam, cycle)
        recent = 0.95 * recent + 0.05 * float(loss.detach())
        if (step + 1) % 100 == 0:
            print(f"flow {step + 1}: {recent:.3f}", file=sys.stderr, flush=True)
    text.eval()
    model.eval()


def run(options: Options) -> Report:
    """Measure clean against degraded or wrong-caption emoji, 20 % uniform flips, three seeds."""
    report = Report("Detection of wrong labels by a flow-matching transformer")
    report.tables["detection"] = []
    pairs = QUICK_PAIRS if options.quick else PAIRS
    made = emoji.pairs(emoji.read(options.data), pairs)
    base, seconds = material(made.dataset, loaded(pipeline(options.data), made.dataset))
    report.facts["emoji features, seconds"] = seconds
    found: dict[str, list[float]] = {"": [], ", --pool": []}
    for seed in range(3):
        swap = uniform(pairs, 0.2, seed)
        flipped = base.flipped(swap)
        for pooled, aurocs in found.items():
            fit = flipped.fit() if pooled else flipped.score()
            scores, _ = scores_of(flipped, fit, BETA, RHO)
            report.tables["detection"] += judge(f"emoji + 20 %, seed {seed}{pooled}", scores, swap)
            aurocs.append(float(auroc(scores["p_wrong"], swap)))
    for pooled, aurocs in found.items():
        median = float(np.median(aurocs))
        report.at_least(f"emoji + 20 %{pooled}: AUROC of p_wrong, median", median, 0.90)
    report.facts["peak MiB"] = peak_memory_mib()
    return report


if __name__ == "__main__":
    main(__doc__, run)
