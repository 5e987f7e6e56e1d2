"""ImageReward (arXiv 2304.05977): BLIP reads picture and prompt together, five layers score it.

The model's own package needs a transformers of 2023 and unpickles its weights, so its checkpoint,
converted to safetensors, is run by transformers' BLIP here. A directory holds config.json and
tokenizer of Salesforce/blip-itm-large-coco and model.safetensors with ImageReward's own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.errors import ModelError
from noisescope.evaluate.judges.base import find_judge, pixels
from noisescope.evaluate.results import Duel, JudgeCard, Output, Verdict, by_score

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.models.checkpoint import Checkpoint

BATCH = 8
#: Tokens of a prompt, and mean and deviation that scores were given after training.
LENGTH, CENTRE, SPREAD = 35, 0.16717362830052426, 1.0333394966054072
CONVERT = (
    'Convert ImageReward.pt (zai-org/ImageReward) once, where you trust it: python -c "import '
    "torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
    "torch.load('ImageReward.pt', weights_only=True).items()}, 'model.safetensors')\", and put "
    "it beside config.json and tokenizer of Salesforce/blip-itm-large-coco: "
    "--judge image-reward=DIRECTORY."
)
#: BLIP's names of the picture's tower, as transformers has them.
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
class ImageRewardJudge:
    """Scores each picture for its prompt."""

    card: JudgeCard
    found: Checkpoint
    device: str

    def cost(self, duels: int) -> str:
        return ""

    @cached_property
    def parts(self) -> tuple[Any, list[tuple[Tensor, Tensor]], Any]:
        """(BLIP, the scoring layers, tokenizer). Raises ModelError."""
        return _load(self.found, self.device)

    def judge(self, duels: Sequence[Duel]) -> list[Verdict]:
        prompts = [duel.prompt.text for duel in duels]
        return by_score(
            self._scores(prompts, [duel.policy for duel in duels]),
            self._scores(prompts, [duel.against for duel in duels]),
        )

    def _scores(self, prompts: Sequence[str], pictures: Sequence[Output]) -> list[float]:
        import torch

        from noisescope.datasets.images import decode

        blip, layers, tokenizer = self.parts
        side = int(blip.config.vision_config.image_size)
        where = blip.device
        scores: list[float] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            shown = [pixels(decode(bytes(p)), side) for p in pictures[part]]  # type: ignore[arg-type]
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


def open_image_reward(model: str, licence: str, device: str) -> ImageRewardJudge:
    """The judge of a directory. Raises ModelError."""
    from noisescope.models.checkpoint import fingerprint

    found = find_judge(model, CONVERT)
    mark = fingerprint(found, {"judge": "image-reward"})
    return ImageRewardJudge(JudgeCard("image-reward", model, licence, "image", mark), found, device)


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
        tokenizer = AutoTokenizer.from_pretrained(found.directory)
    except Exception as error:  # many kinds, all mean "does not load"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{found.name} does not load: {reason}", hint=CONVERT) from error
    used = ("vision_model.", "text_encoder.")
    lacking = [name for name in notes.missing_keys if name.startswith(used)]
    if lacking or not layers:
        first = lacking[0] if lacking else "mlp.layers"
        raise ModelError(f"{found.name} is no ImageReward: it lacks {first}", hint=CONVERT)
    return blip.to(pick_device(device)).eval().requires_grad_(False), layers, tokenizer


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BLIP's tensors of an ImageReward checkpoint by the names transformers gives them."""
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
