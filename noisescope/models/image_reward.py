"""Score images by ImageReward (arXiv 2304.05977): BLIP and five linear layers.

The authors' package needs transformers of 2023 and unpickles its weights, so the checkpoint is
converted to safetensors once and run by transformers' BLIP. The directory contains config.json and
tokenizer of Salesforce/blip-itm-large-coco, and model.safetensors with ImageReward's tensor names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.errors import ModelError, first_line
from noisescope.models.checkpoint import Checkpoint, find_converted, fingerprint
from noisescope.models.pixels import pixels

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
#: Tokens of a prompt, and the mean and deviation by which the authors standardise scores.
LENGTH, CENTRE, SPREAD = 35, 0.16717362830052426, 1.0333394966054072
CONVERT = (
    'Convert ImageReward.pt (zai-org/ImageReward) once, if you trust it: python -c "import '
    "torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
    "torch.load('ImageReward.pt', weights_only=True).items()}, 'model.safetensors')\", and put "
    "it next to config.json and tokenizer of Salesforce/blip-itm-large-coco, and name the "
    "directory: image-reward=DIRECTORY."
)
#: Names of BLIP's vision tower -> transformers' names.
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
INSIDE = {
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@final
@dataclass(frozen=True)
class ImageReward:
    """Scores each image for its prompt; BLIP is loaded at first use."""

    found: Checkpoint
    fingerprint: str
    device: str

    @cached_property
    def parts(self) -> tuple[Any, list[tuple[Tensor, Tensor]], Any]:
        """(BLIP, the scoring layers, tokenizer). Raises ModelError."""
        return _load(self.found, self.device)

    def scores(self, prompts: Sequence[str], images: Sequence[bytes]) -> list[float]:
        """The score of each image for its prompt."""
        import torch

        from noisescope.datasets.images import decode

        blip, layers, tokenizer = self.parts
        side = int(blip.config.vision_config.image_size)
        where = blip.device
        scores: list[float] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            shown = [pixels(decode(one), side) for one in images[part]]
            ids = tokenizer(
                list(prompts[part]),
                padding="max_length",
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            ).to(where)
            with torch.inference_mode():
                seen = blip.vision_model(torch.from_numpy(np.stack(shown)).to(where))[0]
                read = blip.text_encoder(
                    input_ids=ids["input_ids"],
                    attention_mask=ids["attention_mask"],
                    encoder_hidden_states=seen,
                    encoder_attention_mask=torch.ones(seen.shape[:2], device=where).long(),
                )[0]
                values = read[:, 0]
                for weight, bias in layers:
                    values = values @ weight.to(values).T + bias.to(values)
            scores += ((values[:, 0] - CENTRE) / SPREAD).tolist()
        return scores


def open_image_reward(name: str, model: str, device: str) -> ImageReward:
    """Open ImageReward from a directory. Raises ModelError."""
    found = find_converted(model, CONVERT)
    return ImageReward(found, fingerprint(found, {"judge": name}), device)


def _load(found: Checkpoint, device: str) -> tuple[Any, list[tuple[Tensor, Tensor]], Any]:
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, BlipConfig, BlipForImageTextRetrieval

    from noisescope.models.device import pick_device

    try:
        tensors = {n: t.float() for path in found.weights for n, t in load_file(path).items()}
        names = sorted(n for n in tensors if n.startswith("mlp.") and n.endswith("weight"))
        layers = [(tensors[n], tensors[n.replace("weight", "bias")]) for n in names]
        own = to_transformers(tensors)
        config = BlipConfig.from_pretrained(found.directory)
        patches = own["vision_model.embeddings.position_embedding"].shape[1] - 1
        patch = int(config.vision_config.patch_size)
        config.vision_config.image_size = round(patches**0.5) * patch
        blip = BlipForImageTextRetrieval(config)
        notes = blip.load_state_dict(own, strict=False)
        tokenizer = AutoTokenizer.from_pretrained(found.directory, trust_remote_code=False)
    except Exception as error:  # of many kinds; all mean "does not load"
        reason = first_line(error)
        raise ModelError(f"{found.name} does not load: {reason}", hint=CONVERT) from error
    used = ("vision_model.", "text_encoder.")
    missing = [name for name in notes.missing_keys if name.startswith(used)]
    if missing or not layers:
        first = missing[0] if missing else "mlp.layers"
        raise ModelError(f"{found.name} is not ImageReward: {first} is missing", hint=CONVERT)
    return blip.to(pick_device(device)).eval().requires_grad_(False), layers, tokenizer


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the BLIP tensors of an ImageReward checkpoint to transformers' names."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tower, _, rest = name.removeprefix("blip.").partition(".")
        if tower == "text_encoder":
            found[f"text_encoder.{rest}"] = tensor
        elif tower == "visual_encoder":
            found[f"vision_model.{_vision(rest)}"] = tensor
    return found


def _vision(name: str) -> str:
    if block := BLOCK.fullmatch(name):
        return f"encoder.layers.{block[1]}.{INSIDE.get(block[2], block[2])}.{block[3]}"
    stem, _, kind = name.rpartition(".")
    return f"{VISION[stem]}.{kind}" if stem in VISION else VISION.get(name, name)
