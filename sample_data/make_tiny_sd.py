"""Train sample_data/models/tiny-sd: a complete StableDiffusionPipeline of a few megabytes.

    OMP_NUM_THREADS=1 python sample_data/make_tiny_sd.py

Minutes on one thread. It learns to draw captioned coloured shapes at 32 px (latents 8 x 8 x 4)
from freshly drawn pictures whose seed has nothing in common with the sample dataset's.
First the autoencoder (on clean and degraded pictures, so that latents keep both apart), then
the denoiser and the text encoder together on the latents of clean pictures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import tiny_pipelines
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel

HERE = Path(__file__).resolve().parent
SEED = 777
PICTURES = 12_000
AUTOENCODER_STEPS, AUTOENCODER_BATCH = 1_400, 16
#: Steps on small crops (cheap) before steps on whole pictures.
CROP_STEPS, CROP = 1_000, 16
DENOISER_STEPS, DENOISER_BATCH = 1_200, 32
EMPTY_CAPTION_SHARE = 0.1
KL_WEIGHT = 1e-5
FIRST_LOG_VARIANCE = -5.0  # unit-variance noise at the start would hide every picture


def draw(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[str]]:
    """Clean pictures, a degraded copy of each, both [N, 3, S, S] in -1..1, and captions."""
    clean, worse, captions = [], [], []
    for _ in range(count):
        scene = shapes.draw_scene(rng)
        image = shapes.render(scene, rng)
        kind = str(rng.choice(shapes.DEGRADATIONS))
        clean.append(np.asarray(image))
        worse.append(np.asarray(shapes.degrade(image, kind, rng.random(), rng)))
        captions.append(shapes.caption(scene))
    return pixels(clean), pixels(worse), captions


def pixels(images: list[np.ndarray]) -> Tensor:
    """[N, 3, S, S] uint8, to be scaled when used."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def scaled(images: Tensor) -> Tensor:
    """uint8 -> -1..1."""
    return images.float() / 127.5 - 1


def optimiser(parameters: list[Any], peak: float, steps: int) -> tuple[Any, Any]:
    """Adam and a one-cycle schedule."""
    adam = torch.optim.Adam(parameters, lr=peak, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, peak, total_steps=steps, pct_start=0.1)
    return adam, cycle


def start_calmly(model: Any) -> None:
    """Initialise so that every residual block is the identity and no bias drowns the signal.

    torch's default shrinks each convolution's signal by 1/sqrt(3) and adds biases: through the
    autoencoder's trunk hardly anything of the picture is left, and training stalls.
    """
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
                torch.nn.init.zeros_(layer.bias)
                if name.endswith("conv2"):
                    torch.nn.init.zeros_(layer.weight)


def train_autoencoder(vae: Any, images: Tensor, generator: torch.Generator) -> None:
    """Reconstruction (L1) plus a light KL; sets the latents' scale to one standard deviation."""
    start_calmly(vae)
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.latent_channels :] = 0
        vae.quant_conv.bias[vae.config.latent_channels :] = FIRST_LOG_VARIANCE
    adam, cycle = optimiser(list(vae.parameters()), 1.5e-3, AUTOENCODER_STEPS)
    start = time.monotonic()
    for step in range(AUTOENCODER_STEPS):
        rows = torch.randint(len(images), (AUTOENCODER_BATCH,), generator=generator)
        batch = scaled(images[rows])
        if step < CROP_STEPS:
            top, left = torch.randint(shapes.SIDE - CROP + 1, (2,), generator=generator).tolist()
            batch = batch[:, :, top : top + CROP, left : left + CROP]
        posterior = vae.encode(batch).latent_dist
        loss = functional.l1_loss(vae.decode(posterior.sample(generator)).sample, batch)
        loss = loss + KL_WEIGHT * posterior.kl().mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        adam.step()
        cycle.step()
        report("autoencoder", step, loss, start)
    vae.register_to_config(scaling_factor=round(1 / float(encode(vae, images[:512]).std()), 4))


def encode(vae: Any, images: Tensor) -> Tensor:
    """Unscaled latent modes."""
    with torch.inference_mode():
        parts = [vae.encode(scaled(part)).latent_dist.mode() for part in images.split(64)]
    return torch.cat(parts).clone()


def train_denoiser(
    pipeline: Any, latents: Tensor, captions: list[str], generator: torch.Generator
) -> None:
    """Noise prediction, one caption in ten emptied so that the model also knows the empty one."""
    unet, text = pipeline.unet, pipeline.text_encoder
    tokens = tokenised(pipeline.tokenizer, [*captions, ""])
    start_calmly(unet)
    parameters = [*unet.parameters(), *text.parameters()]
    adam, cycle = optimiser(parameters, 1.5e-3, DENOISER_STEPS)
    alphas = pipeline.scheduler.alphas_cumprod
    start = time.monotonic()
    for step in range(DENOISER_STEPS):
        rows = torch.randint(len(latents), (DENOISER_BATCH,), generator=generator)
        empty = torch.rand(DENOISER_BATCH, generator=generator) < EMPTY_CAPTION_SHARE
        words = tokens[torch.where(empty, len(captions), rows)]
        t = torch.randint(1000, (DENOISER_BATCH,), generator=generator)
        eps = torch.randn(latents[rows].shape, generator=generator)
        keep = alphas[t].view(-1, 1, 1, 1)
        noisy = keep.sqrt() * latents[rows] + (1 - keep).sqrt() * eps
        guess = unet(noisy, t, encoder_hidden_states=text(words)[0]).sample
        loss = functional.mse_loss(guess, eps)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        cycle.step()
        report("denoiser", step, loss, start)


def tokenised(words: Any, captions: list[str]) -> Tensor:
    """Token ids [N, L], padded to the tokenizer's length."""
    ids = words(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return torch.as_tensor(ids)


def report(what: str, step: int, loss: Tensor, start: float) -> None:
    """One line every 200 steps."""
    if (step + 1) % 200 == 0:
        print(
            f"{what} {step + 1}: {float(loss.detach()):.4f} {time.monotonic() - start:.0f} s",
            flush=True,
        )


def build(captions: list[str]) -> StableDiffusionPipeline:
    """The untrained pipeline."""
    words = tiny_pipelines.tokenizer(captions, 20)
    config = tiny_pipelines.text_config(words, 64, 2)
    return StableDiffusionPipeline(
        vae=tiny_pipelines.autoencoder((16, 32, 48), groups=8, side=shapes.SIDE),
        text_encoder=CLIPTextModel(config),
        tokenizer=words,
        unet=tiny_pipelines.denoiser((48, 80), side=8, text_width=64, groups=16),
        scheduler=DDIMScheduler(**tiny_pipelines.SCHEDULE, **tiny_pipelines.SAMPLING),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    """Draw, train, save the two large parts in half precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "models" / "tiny-sd")
    output = parser.parse_args().output
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    clean, worse, captions = draw(PICTURES, np.random.default_rng(SEED))
    pipeline = build(captions)
    train_autoencoder(pipeline.vae, torch.cat([clean, worse[: PICTURES // 2]]), generator)
    latents = encode(pipeline.vae, clean) * pipeline.vae.config.scaling_factor
    train_denoiser(pipeline, latents, captions, generator)
    pipeline.vae.half()
    pipeline.unet.half()  # the text encoder stays whole: transformers loads it as it is stored
    pipeline.save_pretrained(output)
    print(f"wrote {output}: {sum(f.stat().st_size for f in output.rglob('*.*')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
