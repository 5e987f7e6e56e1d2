"""Score images by CLIP models: CLIP itself, PickScore, HPS v2, LAION aesthetic.

    scorer = open_clip("pickscore", "yuvalkirstain/PickScore_v1", "auto")
    scorer.scores(prompts, images)   # [n] of images' bytes

CLIP and PickScore (arXiv 2305.01569): exp(logit scale) cos(text, image). HPS v2 (arXiv 2306.09341):
cos(text, image). Aesthetic (LAION, sac+logos+ava1-l14-linearMSE): a stack of linear layers over
the normalised image embedding; the prompt is not used. Tensors may have transformers' names or,
as HPS v2 is published, open_clip's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.errors import ModelError, first_five, first_line
from noisescope.models.checkpoint import Checkpoint, find_converted, fingerprint
from noisescope.models.pixels import DEVIATION, MEAN, pixels

if TYPE_CHECKING:
    from torch import Tensor

#: Images per batch.
BATCH = 16
#: File of the aesthetic scorer's linear layers, next to CLIP's files.
HEAD_FILE = "head.safetensors"
CONVERT = (
    'Convert it once, if you trust it: python -c "import torch, safetensors.torch as s; '
    "d = torch.load('{0}', weights_only=True); s.save_file({{k: v.contiguous() for k, v in "
    "d.get('state_dict', d).items()}}, '{1}')\""
)
HINTS = {
    "clip": CONVERT.format("pytorch_model.bin", "model.safetensors"),
    "pickscore": CONVERT.format("pytorch_model.bin", "model.safetensors"),
    "hpsv2": CONVERT.format("HPS_v2.1_compressed.pt", "model.safetensors")
    + ", next to config.json, tokenizer and preprocessor_config.json of "
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K, and name the directory: hpsv2=DIRECTORY.",
    "aesthetic": "Put CLIP's files (openai/clip-vit-large-patch14) and its layers into one "
    "directory and name it: aesthetic=DIRECTORY. "
    + CONVERT.format("sac+logos+ava1-l14-linearMSE.pth", f"DIRECTORY/{HEAD_FILE}"),
}

TOKENIZER = (
    "Put its files and the tokenizer and preprocessor_config.json of "
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K into one directory, and name it: {0}=DIRECTORY."
)


@final
@dataclass(frozen=True)
class Clip:
    """A CLIP checkpoint; the model is loaded at first use."""

    found: Checkpoint
    device: str

    @cached_property
    def model(self) -> Any:
        """The CLIPModel in float32."""
        from noisescope.models.device import pick_device

        return load_clip(self.found).to(pick_device(self.device)).eval().requires_grad_(False)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.found.directory, trust_remote_code=False)

    @cached_property
    def preparation(self) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
        """(side, mean, deviation) of preprocessor_config.json, or CLIP's defaults."""
        path = self.found.directory / "preprocessor_config.json"
        config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        side = int(self.model.config.vision_config.image_size)
        mean, deviation = config.get("image_mean", MEAN), config.get("image_std", DEVIATION)
        return side, tuple(mean), tuple(deviation)

    def images(self, shown: Sequence[bytes]) -> Tensor:
        """Embed images; normalised [n, D]."""
        import torch

        from noisescope.datasets.images import decode

        parts = []
        with torch.inference_mode():
            for start in range(0, len(shown), BATCH):
                batch = [pixels(decode(one), *self.preparation) for one in shown[start:][:BATCH]]
                values = torch.from_numpy(np.stack(batch)).to(self.model.device)
                vision = self.model.vision_model(pixel_values=values)
                parts.append(self.model.visual_projection(vision.pooler_output))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts, truncated to CLIP's length; normalised [n, D]."""
        import torch

        length = int(self.model.config.text_config.max_position_embeddings)
        ids = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            text = self.model.text_model(
                input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]
            )
            embedded = self.model.text_projection(text.pooler_output)
        return torch.nn.functional.normalize(embedded, dim=-1)


@final
@dataclass(frozen=True)
class ClipScorer:
    """Scores images by `score(clip, texts [n, D] or None, images [n, D]) -> [n]`."""

    found: Checkpoint
    fingerprint: str
    clip: Clip
    score: Callable[[Clip, Tensor | None, Tensor], Tensor]
    reads_prompt: bool = True

    def scores(self, prompts: Sequence[str], images: Sequence[bytes]) -> list[float]:
        """The score of each image for its prompt; distinct texts and images are embedded once."""
        if not images:
            return []
        texts = _once(self.clip.texts, prompts) if self.reads_prompt else None
        found: list[float] = self.score(self.clip, texts, _once(self.clip.images, images)).tolist()
        return found


def _once(embed: Callable[[Sequence[Any]], Tensor], values: Sequence[Any]) -> Tensor:
    """`embed` of each value, [n, D], computed once for equal ones."""
    distinct = list(dict.fromkeys(values))
    row = {value: at for at, value in enumerate(distinct)}
    return embed(distinct)[[row[value] for value in values]]


def scaled_cosine(clip: Clip, texts: Tensor | None, images: Tensor) -> Tensor:
    """Compute the score of CLIP and PickScore: exp(logit scale) times the cosine."""
    scaled: Tensor = clip.model.logit_scale.exp() * cosine(clip, texts, images)
    return scaled


def cosine(clip: Clip, texts: Tensor | None, images: Tensor) -> Tensor:
    """Compute HPS v2's score: the cosine."""
    assert texts is not None
    return (texts * images).sum(-1)


def open_clip(name: str, model: str, device: str) -> ClipScorer:
    """Open CLIP, PickScore or HPS v2. Raises ModelError."""
    found = find_converted(model, HINTS[name], TOKENIZER.format(name))
    score = cosine if name == "hpsv2" else scaled_cosine
    return ClipScorer(found, _mark(found, name), Clip(found, device), score)


def open_aesthetic(name: str, model: str, device: str) -> ClipScorer:
    """Open the aesthetic scorer: a directory of CLIP's files and HEAD_FILE. Raises ModelError."""
    found = find_converted(model, HINTS[name])
    layers = linear_layers(found.directory / HEAD_FILE)

    def score(clip: Clip, texts: Tensor | None, images: Tensor) -> Tensor:
        values = images
        for weight, bias in layers:
            values = values @ weight.to(values).T + bias.to(values)
        return values[:, 0]

    return ClipScorer(found, _mark(found, name), Clip(found, device), score, reads_prompt=False)


def linear_layers(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Load weights and biases in the order of the numbers in their names. Raises ModelError.

    LAION's names are `layers.0.weight`, `layers.2.weight`, ..., with only dropout between them.
    The older one-layer head is `weight` and `bias`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"{path.parent} has no {HEAD_FILE}", hint=HINTS["aesthetic"])
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} does not load: {error}", hint=HINTS["aesthetic"]) from error
    names = sorted((n for n in tensors if n.endswith("weight")), key=_number)
    layers = [(tensors[n].float(), tensors[n[: -len("weight")] + "bias"].float()) for n in names]
    sizes = [tuple(weight.shape) for weight, _ in layers]
    fits = all(after[1] == before[0] for before, after in pairwise(sizes))
    if not layers or not fits or sizes[-1][0] != 1:
        raise ModelError(
            f"{path}: layers of {sizes} do not end in one score", hint=HINTS["aesthetic"]
        )
    return layers


def _number(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdecimal()), 0)


def load_clip(found: Checkpoint) -> Any:
    """Load a CLIPModel from tensors with transformers' or open_clip's names. Raises ModelError."""
    from transformers import CLIPConfig, CLIPModel

    try:
        config = CLIPConfig.from_pretrained(found.directory)
        tensors = _tensors(found)
        if "visual.conv1.weight" in tensors:
            tensors = to_transformers(tensors)
        model = CLIPModel(config)
        notes = model.load_state_dict(tensors, strict=False)
    except Exception as error:  # of many kinds; all mean "does not load"
        reason = first_line(error)
        raise ModelError(
            f"{found.name} does not load as CLIP: {reason}",
            hint="config.json and weights must be of one CLIP model; download them again.",
        ) from error
    if notes.missing_keys:
        missing = first_five(notes.missing_keys)
        raise ModelError(
            f"{found.name}: {len(notes.missing_keys)} tensors are missing: {missing}",
            hint="config.json and weights must be of one CLIP model; download them again.",
        )
    return model


def _tensors(found: Checkpoint) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    files = [path for path in found.weights if path.name.startswith("model")]
    return {
        name: t.float() for path in files or found.weights for name, t in load_file(path).items()
    }


def _mark(found: Checkpoint, name: str) -> str:
    return fingerprint(found, {"judge": name})


#: open_clip's names outside the blocks -> (transformers' name, whether to transpose).
WHOLE = {
    "visual.class_embedding": ("vision_model.embeddings.class_embedding", False),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight", False),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight", False),
    "visual.ln_pre.weight": ("vision_model.pre_layrnorm.weight", False),
    "visual.ln_pre.bias": ("vision_model.pre_layrnorm.bias", False),
    "visual.ln_post.weight": ("vision_model.post_layernorm.weight", False),
    "visual.ln_post.bias": ("vision_model.post_layernorm.bias", False),
    "visual.proj": ("visual_projection.weight", True),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight", False),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight", False),
    "ln_final.weight": ("text_model.final_layer_norm.weight", False),
    "ln_final.bias": ("text_model.final_layer_norm.bias", False),
    "text_projection": ("text_projection.weight", True),
    "logit_scale": ("logit_scale", False),
}
#: open_clip's names inside a block -> transformers' names.
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename open_clip's tensors; q, k and v are split, projections transposed."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in WHOLE:
            new, is_transposed = WHOLE[name]
            found[new] = tensor.T.contiguous() if is_transposed else tensor
        elif block := BLOCK.fullmatch(name):
            tower = "vision_model" if block[1] else "text_model"
            start = f"{tower}.encoder.layers.{block[2]}."
            if block[3] == "attn.in_proj":
                parts = zip("qkv", tensor.chunk(3), strict=True)
                found |= {f"{start}self_attn.{n}_proj.{block[4]}": p for n, p in parts}
            else:
                found[f"{start}{INSIDE[block[3]]}.{block[4]}"] = tensor
    return found
