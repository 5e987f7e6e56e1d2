"""State the published settings as noisescope commands, with the GPU hours they should take.

    Step("noisescope train ...", units=4e6, preset="sd15").hours

Hours are floating-point operations over (rate x utilisation). Operations are counted: a denoiser
call by torch's FLOP counter on the published architecture without weights (meta device), a token
of GPT-2 by `noisescope.models.forward.measure`. Rate and utilisation are assumed, as in
`benchmarks.scale.cost`. The paper's batch of 128 images is 16 a device: eight devices, or
`--accumulation 8` on one. Its judge of text is Qwen2.5-72B, behind an endpoint of your own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.scale.cost import RATE, UTILISATION
from noisescope.training.policy.presets import PRESETS

ASSUMED = (
    f"hours: counted FLOPs over {UTILISATION:.0%} of an H100's {RATE / 1e12:.0f} TFLOP/s "
    "(bfloat16, dense); reading, VAE and text encoding, checkpoints and judges come on top"
)
PICK, HH = "yuvalkirstain/pickapic_v2", "Anthropic/hh-rlhf"
#: Training pairs: Pick-a-Pic v2 959,040 rows with ties, HH-RLHF 161 k (method.md).
PAIRS = {"image": 959_040, "text": 160_800}
MODELS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "hh": "openai-community/gpt2",
}
#: Mean tokens of an HH-RLHF transcript pair (prompt and both answers), assumed, not measured.
TOKENS = 400
RATES = (0.1, 0.2, 0.3)
#: The paper's judges.
JUDGES = {
    "image": "--judge pickscore --judge image-reward --judge aesthetic --judge hpsv2",
    "text": "--judge llm=Qwen/Qwen2.5-72B-Instruct --endpoint http://127.0.0.1:8000/v1",
}
#: A denoiser's training call: forward, and backward through frozen weights without their gradient.
TRAIN_CALLS, REFERENCE_CALLS = 3, 1
#: Draws of a head audit of images; heads need one pass over the distinct images.
AUDIT_CALLS = 4


@dataclass(frozen=True)
class Step:
    """One command, and its work in units of `unit(preset)`; 0 is not counted."""

    command: str
    units: float = 0.0
    preset: str = ""

    @property
    def hours(self) -> float:
        """Return the GPU hours it should take."""
        return self.units * unit(self.preset) / (RATE * UTILISATION) / 3600 if self.units else 0.0

    @property
    def words(self) -> list[str]:
        """Split the command as a shell would."""
        return shlex.split(self.command)


def flip(dataset: str, rate: float, out: str) -> Step:
    """Write a copy with known flips."""
    return Step(f"noisescope flip {dataset} --split train --rate {rate:g} --seed 0 --output {out}")


def score(dataset: str, preset: str) -> Step:
    """Audit a dataset."""
    calls = 2 * AUDIT_CALLS if kind(preset) == "image" else 1
    command = f"noisescope score {dataset} --model {MODELS[preset]}"
    return Step(command, PAIRS[kind(preset)] * calls, preset)


def train(dataset: str, preset: str, objective: str, out: str, *more: str, extra: int = 0) -> Step:
    """Train with a preset; `extra` counts more policy forwards a pair (averaged copies)."""
    words = (
        f"noisescope train {dataset} --model {MODELS[preset]} --preset {preset} --dtype bfloat16 "
        f"--objective {objective} --output {out}"
    )
    calls = TRAIN_CALLS + REFERENCE_CALLS + extra
    sides = 2 if kind(preset) == "image" else 1  # a unit of text is a whole pair
    return Step(" ".join((words, *more)), PAIRS[kind(preset)] * sides * calls, preset)


def evaluate(policy: str, preset: str, against: str | None = None) -> Step:
    """Judge win rates against another policy, or the pretrained model. Not in the hours."""
    prompts = f"{PICK} --split test_unique" if kind(preset) == "image" else f"{HH} --split test"
    opponent = f" --against {against}" if against else ""
    return Step(
        f"noisescope evaluate --policy {policy}{opponent} --prompts {prompts} --limit 500 "
        f"{JUDGES[kind(preset)]}"
    )


def kind(preset: str) -> str:
    """Return image or text."""
    return PRESETS[preset].modality


@cache
def unit(preset: str) -> float:
    """Count the FLOPs of one denoiser call on one image, or of one forward over a text pair."""
    if preset == "hh":
        return _text_unit()
    return _image_unit(xl=preset == "sdxl")


def _text_unit() -> float:
    from transformers import GPT2Config, GPT2LMHeadModel

    from noisescope.models.forward import measure

    size = measure(GPT2LMHeadModel(GPT2Config()))
    return float(2 * (size.body + size.head) * TOKENS)


def _image_unit(xl: bool) -> float:
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = UNet2DConditionModel(**(SDXL if xl else SD15))
        size = unet.config.sample_size
        text = torch.zeros(1, 77, unet.config.cross_attention_dim)
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)} if xl else None
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            unet(torch.zeros(1, 4, size, size), torch.zeros(1), text, added_cond_kwargs=added)
    return float(counted.get_total_flops())


#: Shapes of the published UNets, from their config.json (without the defaults of diffusers).
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def copies(dataset: str, short: str, rates: Sequence[float] = RATES) -> Iterator[Step]:
    """Write flipped copies of a dataset at every rate, under flipped/SHORT-RATE."""
    yield from (flip(dataset, rate, copy_path(short, rate)) for rate in rates)


def copy_path(short: str, rate: float) -> str:
    """Return the path of the copy with this flip rate."""
    return f"flipped/{short}-{rate:g}"


def source(dataset: str, short: str, rate: float) -> str:
    """Return the dataset itself, or its flipped copy."""
    return copy_path(short, rate) if rate else f"{dataset} --split train"
