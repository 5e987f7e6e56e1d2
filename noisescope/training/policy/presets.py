"""Presets: the published settings of Adaptive-DPO by name, each value with its source.

    noisescope train pick-a-pic --preset sd15

A setting that a preset does not name keeps its default. Flags override a preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from noisescope.errors import UsageError
from noisescope.pairs import Modality

#: "Combating inherent noise for direct preference optimization"; later arXiv 2503.16921.
PAPER = "Adaptive-DPO, section 5.1"
ABLATED = "Adaptive-DPO, Table 5"
RELEASE = "the released code of arXiv 2503.16921"
DPO_PAPER = "DPO, arXiv 2305.18290, appendix B"


@final
@dataclass(frozen=True)
class Preset:
    """Settings by the name of their flag: (value, source).

    `local_batch` is the number of pairs on one device in the paper. It is no setting here: the
    gradient is that of the whole batch, which is split as memory requires or by `--accumulation`.
    """

    modality: Modality
    local_batch: int
    settings: Mapping[str, tuple[Any, str]]

    @property
    def values(self) -> dict[str, Any]:
        """Return the settings without their sources."""
        return {name: value for name, (value, _) in self.settings.items()}


_IMAGE: dict[str, tuple[Any, str]] = {
    "rho": (15.0, f"{PAPER} (SD1.5: 10 and 15 tried)"),
    "batch": (128, PAPER),
    "learning_rate": (1e-5, RELEASE),
    "schedule": ("constant", RELEASE),
    "warmup": (0.0, RELEASE),
    "epochs": (1.0, RELEASE),
    "lora_r": (8, RELEASE),
}

PRESETS: dict[str, Preset] = {
    "sd15": Preset(
        "image",
        16,
        {"beta": (1000.0, PAPER), "k1": (10.0, f"{ABLATED} (4, 10 and 12 tried)"), **_IMAGE},
    ),
    "sdxl": Preset(
        "image",
        16,
        {"beta": (2500.0, PAPER), "k1": (10.0, "not stated for SDXL; as SD1.5"), **_IMAGE},
    ),
    "hh": Preset(
        "text",
        4,
        {
            "beta": (0.1, PAPER),
            "k1": (10.0, "not stated for text; as SD1.5"),
            "rho": (1.0, PAPER),
            "batch": (32, PAPER),
            "learning_rate": (1e-6, f"{DPO_PAPER}; not stated by Adaptive-DPO"),
            "schedule": ("constant", DPO_PAPER),
            "warmup": (150.0, f"{DPO_PAPER}: 150 steps"),
            "epochs": (1.0, "not stated; one, as the released code has for images"),
            "full": (True, "the learning rate is that of a full fine-tuning"),
        },
    ),
}


def preset(name: str, modality: Modality) -> dict[str, Any]:
    """Return the settings of a preset. Raises UsageError if unknown or of another modality."""
    found = PRESETS.get(name)
    if found is None:
        raise UsageError(
            f"--preset {name}: one of {', '.join(PRESETS)}", hint="docs/train.md lists them."
        )
    if found.modality != modality:
        fitting = [key for key, one in PRESETS.items() if one.modality == modality]
        raise UsageError(
            f"--preset {name} is for {found.modality} pairs, these are {modality}",
            hint=" or ".join(f"--preset {key}" for key in fitting) or "Leave --preset out.",
        )
    return found.values


def describe() -> str:
    """Return the presets on one line, for help texts."""
    return "; ".join(
        f"{name}: "
        + ", ".join(f"{flag.replace('_', '-')} {value}" for flag, value in one.values.items())
        for name, one in PRESETS.items()
    )
