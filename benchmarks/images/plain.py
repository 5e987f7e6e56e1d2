"""Run DiffusionDPO's training step, and scoring, without caches: the peer of the images benchmark.

Nothing is kept from one batch to the next: pictures are decoded and encoded and captions embedded
each time; the reference is a second whole UNet.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisescope.datasets.images import crop, decode
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.models.pipeline import Pipeline
from noisescope.pairs import PreferenceDataset

BATCH = 16


def prepared(policy: DiffusionPolicy, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Return latents [2B, C, h, w] (chosen, then rejected) and text [2B, L, D] of pairs."""
    pipeline = policy.pipeline
    keys = [row[side] for side in ("chosen", "rejected") for row in rows]
    squares = [crop(decode(policy.images.get(key)), policy.pipeline.image_size)[0] for key in keys]
    stacked = np.stack([np.asarray(square) for square in squares])
    pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1
    pixels = pixels.to(pipeline.pipe.vae.device, pipeline.pipe.vae.dtype)
    tokenizer, encoder = pipeline.pipe.tokenizer, pipeline.pipe.text_encoder
    with torch.no_grad():
        z = (
            pipeline.pipe.vae.encode(pixels).latent_dist.sample()
            * pipeline.pipe.vae.config.scaling_factor
        )
        tokens = tokenizer(
            [row["prompt"] for row in rows],
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        return z, encoder(tokens.input_ids.to(encoder.device))[0].repeat(2, 1, 1)


def logratios(tuned: Any, pipeline: Pipeline, z: Tensor, text: Tensor) -> Tensor:
    """Return l [B] at one draw of (t, eps), shared by the sides of a pair."""
    count = len(z) // 2
    eps = torch.randn_like(z[:count]).repeat(2, 1, 1, 1)
    t = torch.randint(0, pipeline.schedule.steps, (count,), device=z.device).repeat(2)
    noisy = pipeline.schedule.noisy(z, t, eps)
    error = (tuned(noisy, t, text).sample - eps).square().mean((1, 2, 3))
    with torch.no_grad():
        reference = (pipeline.model(noisy, t, text).sample - eps).square().mean((1, 2, 3))
    chosen, rejected = (error - reference).chunk(2)
    return rejected - chosen


def with_adapters(unet: Any, rank: int) -> Any:
    """Copy a UNet with LoRA on its attention, as diffusers' research DPO script sets it up."""
    from peft import LoraConfig

    tuned = copy.deepcopy(unet).requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    tuned.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
    )
    return tuned


def plain_steps(
    policy: DiffusionPolicy, dataset: PreferenceDataset, steps: int, rank: int | None = None
) -> float:
    """Measure pairs/s of full fine-tuning, or of LoRA of a rank."""
    unet = policy.pipeline.model
    tuned = copy.deepcopy(unet).requires_grad_(True) if rank is None else with_adapters(unet, rank)
    adam = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-4)
    began = time.perf_counter()
    for step in range(steps):
        rows = dataset.table.slice(step * BATCH, BATCH).to_pylist()
        ratio = logratios(tuned, policy.pipeline, *prepared(policy, rows))
        torch.nn.functional.softplus(-2500 * ratio).mean().backward()
        adam.step()
        adam.zero_grad()
    return steps * BATCH / (time.perf_counter() - began)


def plain_scores(
    policy: DiffusionPolicy, dataset: PreferenceDataset, pairs: int, draws: int
) -> float:
    """Time scoring a pair with one fine-tuned model at `draws` draws."""
    tuned = copy.deepcopy(policy.pipeline.model)
    began = time.perf_counter()
    with torch.no_grad():
        for start in range(0, pairs, BATCH):
            rows = dataset.table.slice(start, BATCH).to_pylist()
            ready = prepared(policy, rows)
            for _ in range(draws):
                logratios(tuned, policy.pipeline, *ready)
    return (time.perf_counter() - began) / pairs
