"""Where a model's weights are, and whether they are quantised on load.

Placement("auto", "4bit").arguments(found, device, dtype)   # for `from_pretrained`
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import UsageError
from noisescope.models.checkpoint import Checkpoint, quantization

if TYPE_CHECKING:
    import torch

#: Kinds of --quantize -> the package that computes with them.
QUANTIZE = {"4bit": "bitsandbytes"}


@final
@dataclass(frozen=True)
class Placement:
    """Layers spread by accelerate (`device_map` "auto"), and weights quantised on load.

    Raises UsageError for values that are unknown, or a package that is not installed.
    """

    device_map: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        if self.device_map not in (None, "auto"):
            raise UsageError(
                f"--device-map {self.device_map} is unknown",
                hint="--device-map auto spreads the layers; --device names one device.",
            )
        if self.quantize is None:
            return
        package = QUANTIZE.get(self.quantize)
        if package is None:
            raise UsageError(
                f"--quantize {self.quantize} is unknown", hint=f"One of {', '.join(QUANTIZE)}."
            )
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"--quantize {self.quantize} needs the package {package}",
                hint=f"pip install {package}, or leave --quantize out.",
            )

    def settings(self) -> dict[str, object]:
        """What changes the features: quantised weights, but not where the layers are."""
        return {} if self.quantize is None else {"quantize": self.quantize}

    def arguments(
        self, found: Checkpoint, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Arguments of `from_pretrained`; empty if the model is moved to `device` afterwards.

        Quantised weights are placed while they are read: they cannot all be moved. Raises
        UsageError for a checkpoint that cannot be placed or quantised so.
        """
        flags = {"--device-map": self.device_map, "--quantize": self.quantize}
        given = [name for name, value in flags.items() if value is not None]
        if given and found.gguf is not None:
            raise UsageError(
                f"{' and '.join(given)}: {found.name} is a GGUF file, which is read on one device",
                hint="Name the model's safetensors checkpoint instead.",
            )
        stated = quantization(found)
        if self.quantize is not None and stated is not None:
            raise UsageError(
                f"--quantize {self.quantize}: {found.name} is quantised already "
                f"({stated.get('quant_method', 'unknown kind')})",
                hint="Leave --quantize out.",
            )
        if not given and stated is None:
            return {}
        where: dict[str, Any] = {"device_map": self.device_map or {"": device}}
        if self.quantize is not None:
            from transformers import BitsAndBytesConfig

            where["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
        return where
