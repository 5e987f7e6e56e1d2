"""Train a tiny pipeline on captioned emoji, once, and make pairs with a known better side.

    python -m benchmarks.emoji        # train (minutes on one thread) and print its directory

Pictures are the 32 px emoji of the development data on white, captions their Unicode names.
Training starts from sample_data/models/tiny-sd and never sees the HELD_OUT share of the emoji, so
that pairs of unseen captions can be measured separately.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness import ROOT, shared_data
from benchmarks.models import cache
from noisescope.datasets.images import StoredImages, image_key
from noisescope.pairs import Facts, Pair, PreferenceDataset, dataset_fingerprint, to_table

sys.path.insert(0, str(ROOT / "sample_data"))  # a folder of scripts, not a package

SIDE = 32
HELD_OUT = 0.15
TOKENS = 24
SEED = 31
AUTOENCODER_STEPS, AUTOENCODER_BATCH = 350, 16
DENOISER_STEPS, DENOISER_BATCH = 1_000, 32
EMPTY_CAPTION_SHARE = 0.1
#: What is wrong with the worse side of a pair.
KINDS = ("blur", "noise", "blocks", "washed-out", "other caption")


@dataclass(frozen=True)
class Emoji:
    """One picture [32, 32, 3] uint8 and its name; `single` code point; `unseen` in training."""

    name: str
    pixels: NDArray[np.uint8]
    single: bool
    unseen: bool


def read(data: Path) -> list[Emoji]:
    """Read all emoji whose code points have names, in file order."""
    out = []
    with tarfile.open(data / "emoji" / "png32.tar.gz") as archive:
        for entry in archive:
            stem = Path(entry.name).stem
            if not stem.startswith("emoji_u"):
                continue
            points = [chr(int(code, 16)) for code in stem.removeprefix("emoji_u").split("_")]
            shown = [point for point in points if unicodedata.category(point) not in ("Mn", "Cf")]
            names = [unicodedata.name(point, "") for point in shown]
            file = archive.extractfile(entry)
            if file is None or not all(names) or not names:
                continue
            name = ", ".join(names).lower()
            out.append(Emoji(name, _on_white(file.read()), len(points) == 1, _unseen(names[0])))
    return out


def _unseen(name: str) -> bool:
    """Return whether an emoji (and all built on it) is held out: a function of its name."""
    return hashlib.sha256(name.encode()).digest()[0] < HELD_OUT * 256


def _on_white(data: bytes) -> NDArray[np.uint8]:
    layers = Image.open(io.BytesIO(data)).convert("RGBA")
    ground = Image.new("RGBA", layers.size, "white")
    return np.asarray(Image.alpha_composite(ground, layers).convert("RGB").resize((SIDE, SIDE)))


def pipeline(data: Path) -> Path:
    """Return the directory of the trained pipeline; train it if missing."""
    target = cache() / "tiny-emoji-sd-1"
    if not (target / "model_index.json").is_file():
        print(f"training {target} on emoji (minutes)", file=sys.stderr)
        scratch = target.with_name(f"{target.name}.partial")
        train([emoji for emoji in read(data) if not emoji.unseen]).save_pretrained(scratch)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    return target


def train(emoji: list[Emoji]) -> Any:
    """Fine-tune the bundled StableDiffusionPipeline on these pictures."""
    import make_tiny_sd
    import tiny_pipelines
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    captions = [one.name for one in emoji]
    words = tiny_pipelines.tokenizer(captions, TOKENS)
    text = CLIPTextModel(tiny_pipelines.text_config(words, 64, 2))
    start = ROOT / "sample_data" / "models" / "tiny-sd"
    made = StableDiffusionPipeline.from_pretrained(
        start, tokenizer=words, text_encoder=text, safety_checker=None, torch_dtype=torch.float32
    )
    made.set_progress_bar_config(disable=True)
    clean = make_tiny_sd.pixels([one.pixels for one in emoji])
    worse = make_tiny_sd.pixels([_degraded(one.pixels, n) for n, one in enumerate(emoji)])
    _fit_autoencoder(made.vae, torch.cat([clean, worse[::2]]), generator)
    latents = make_tiny_sd.encode(made.vae, clean) * made.vae.config.scaling_factor
    _fit_denoiser(made, latents, captions, generator)
    return made


def _degraded(pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    import shapes

    rng = np.random.default_rng((SEED, seed))
    kind = str(rng.choice(shapes.DEGRADATIONS))
    return np.asarray(shapes.degrade(Image.fromarray(pixels), kind, rng.random(), rng))


def _fit_autoencoder(vae: Any, images: Any, generator: Any) -> None:
    """Train reconstruction (L1) with the light KL of `make_tiny_sd`, from the trained weights."""
    import make_tiny_sd
    import torch
    from torch.nn import functional

    vae.train().requires_grad_(True)
    adam, cycle = make_tiny_sd.optimiser(list(vae.parameters()), 1e-3, AUTOENCODER_STEPS)
    for _ in range(AUTOENCODER_STEPS):
        rows = torch.randint(len(images), (AUTOENCODER_BATCH,), generator=generator)
        batch = make_tiny_sd.scaled(images[rows])
        posterior = vae.encode(batch).latent_dist
        loss = functional.l1_loss(vae.decode(posterior.sample(generator)).sample, batch)
        take_step(
            loss + make_tiny_sd.KL_WEIGHT * posterior.kl().mean(), vae.parameters(), adam, cycle
        )
    vae.eval()
    scale = float(make_tiny_sd.encode(vae, images[:512]).std())
    vae.register_to_config(scaling_factor=round(1 / scale, 4))
    print(f"autoencoder: L1 {float(loss.detach()):.3f}", file=sys.stderr)


def _fit_denoiser(made: Any, latents: Any, captions: list[str], generator: Any) -> None:
    """Train noise prediction, one caption in ten emptied."""
    import make_tiny_sd
    import torch
    from torch.nn import functional

    unet, text = made.unet.train(), made.text_encoder.train()
    tokens = make_tiny_sd.tokenised(made.tokenizer, [*captions, ""])
    parameters = [*unet.requires_grad_(True).parameters(), *text.parameters()]
    adam, cycle = make_tiny_sd.optimiser(parameters, 1.5e-3, DENOISER_STEPS)
    alphas, recent = made.scheduler.alphas_cumprod, 1.0
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
        take_step(loss, parameters, adam, cycle)
        recent = 0.95 * recent + 0.05 * float(loss.detach())
        if (step + 1) % 100 == 0:
            print(f"denoiser {step + 1}: {recent:.3f}", file=sys.stderr, flush=True)


def take_step(loss: Any, parameters: Any, adam: Any, cycle: Any) -> None:
    import torch

    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    adam.step()
    cycle.step()


@dataclass(frozen=True)
class EmojiPairs:
    """Pairs whose chosen side is truly better; the fault of the other side; unseen captions."""

    dataset: PreferenceDataset
    kinds: NDArray[np.str_]
    unseen: NDArray[np.bool_]


def pairs(emoji: list[Emoji], count: int, seed: int = 0) -> EmojiPairs:
    """Make `count` pairs: a clean picture against a degraded one, or one with another name."""
    import shapes

    rng = np.random.default_rng((SEED, 1, seed))
    single = [one for one in emoji if one.single]
    held: dict[str, bytes] = {}
    rows, kinds, unseen = [], [], []
    for number in range(count):
        one = single[int(rng.integers(len(single)))]
        other = next(o for o in (single[i] for i in rng.permutation(len(single))) if o is not one)
        kind, clean = KINDS[number % len(KINDS)], Image.fromarray(one.pixels)
        if kind == "other caption":
            worse = Image.fromarray(other.pixels)
        else:
            worse = shapes.degrade(clean, kind, rng.random(), rng)
        keys = []
        for image in (clean, worse):
            stream = io.BytesIO()
            image.save(stream, "PNG")
            data = stream.getvalue()
            keys.append(image_key(data))
            held[keys[-1]] = data
        rows.append(Pair(one.name, *keys, source="emoji", row=number))
        kinds.append(kind)
        unseen.append(one.unseen)
    table = to_table(rows)
    dataset = PreferenceDataset(
        name="emoji",
        resolved="emoji",
        adapter="pick_a_pic",
        modality="image",
        table=table,
        facts=Facts(rows=count, pairs=count),
        fingerprint=dataset_fingerprint(table),
        images=StoredImages(held),
    )
    return EmojiPairs(dataset, np.array(kinds), np.array(unseen))


if __name__ == "__main__":
    print(pipeline(shared_data()))
