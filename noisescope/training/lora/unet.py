"""LoRA on the attention layers of a denoiser: which layers, and the file that diffusers loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from noisescope.errors import ModelError
from noisescope.models.checkpoint import UNET_LORA_WEIGHTS
from noisescope.storage.files import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.models.denoiser import Denoiser
    from noisescope.training.lora.adapters import Adapters

#: Linear layers that carry adapters, as in the released code of 2503.16921.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def attention_layers(denoiser: Denoiser, blocks: Sequence[str] | None) -> list[str]:
    """Names of the adapted layers of the named blocks; None: of the whole denoiser.

    Raises ModelError if there are none.
    """
    ends = tuple(f".{end}" for end in TARGETS)
    prefixes = ("",) if blocks is None else tuple(f"{block}." for block in blocks)
    names = [
        name
        for name, _ in denoiser.model.named_modules()
        if name.endswith(ends) and name.startswith(prefixes)
    ]
    if not names:
        raise ModelError(
            f"no attention layer ({', '.join(TARGETS)}) in "
            + ("this denoiser" if blocks is None else f"its blocks {', '.join(blocks)}"),
            hint="Remove --layers, or use --full.",
        )
    return names


def save_unet_adapter(
    adapters: Adapters, replica: int, directory: Path, weights: Mapping[str, Tensor], role: str
) -> list[str]:
    """Write one replica as `pipeline.load_lora_weights(directory)` reads it; the file's name.

    `role` is the denoiser's in the pipeline. `weights` are stacked tensors by the names of
    `Adapters.parameters`; B includes the scale.
    """
    tensors = {}
    for name, layer in adapters.layers.items():
        a, b = (weights[f"{name}.{part}"][replica].detach() for part in "ab")
        tensors[f"{role}.{name}.lora_A.weight"] = a
        tensors[f"{role}.{name}.lora_B.weight"] = b * layer.scales[replica]
    write_tensors(directory / UNET_LORA_WEIGHTS, tensors)
    return [UNET_LORA_WEIGHTS]
