"""The published settings of Adaptive-DPO by name, each value with its source.

    noisescope train pick-a-pic --preset sd15

What a preset leaves out keeps its default; a flag overrides a preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from noisescope.errors import UsageError
from noisescope.pairs import Modality

PAPER = "Adaptive-DPO, arXiv 2503.16921, settings"
RELEASE = "the released code of arXiv 2503.16921"
DPO_PAPER = "DPO, arXiv 2305.18290, appendix B"


@final
@dataclass(frozen=True)
class Preset:
    """Settings by the name of their flag: (value, source)."""

    modality: Modality
    settings: Mapping[str, tuple[Any, str]]

    @property
    def values(self) -> dict[str, Any]:
        """Settings without their sources."""
        return {name: value for name, (value, _) in self.settings.items()}


_IMAGE: dict[str, tuple[Any, str]] = {
    "rho": (15.0, PAPER),
    "k1": (10.0, f"{PAPER} (4, 10 and 12 ablated)"),
    "batch": (128, PAPER),
    "learning_rate": (1e-5, RELEASE),
    "schedule": ("constant", RELEASE),
    "warmup": (0.0, RELEASE),
    "epochs": (1.0, RELEASE),
    "lora_r": (8, RELEASE),
}

PRESETS: dict[str, Preset] = {
    "sd15": Preset("image", {"beta": (1000.0, PAPER), **_IMAGE}),
    "sdxl": Preset("image", {"beta": (2500.0, PAPER), **_IMAGE}),
    "hh": Preset(
        "text",
        {
            "beta": (0.1, PAPER),
            "rho": (1.0, PAPER),
            "k1": (10.0, f"{PAPER} (4, 10 and 12 ablated)"),
            "batch": (32, PAPER),
            "learning_rate": (1e-6, f"{DPO_PAPER}; not stated in 2503.16921"),
            "schedule": ("constant", DPO_PAPER),
            "warmup": (150.0, f"{DPO_PAPER}: 150 steps"),
            "epochs": (1.0, "not stated; one, as the image runs"),
            "full": (True, "the learning rate is a full fine-tune's"),
        },
    ),
}


def preset(name: str, modality: Modality) -> dict[str, Any]:
    """The settings of a preset. Raises UsageError for an unknown or unfitting one."""
    found = PRESETS.get(name)
    if found is None:
        raise UsageError(
            f"--preset {name}: one of {', '.join(PRESETS)}", hint="docs/train.md lists them."
        )
    if found.modality != modality:
        fitting = [key for key, one in PRESETS.items() if one.modality == modality]
        raise UsageError(
            f"--preset {name} is about {found.modality} pairs, these are {modality}",
            hint=f"Use {' or '.join(f'--preset {key}' for key in fitting)}.",
        )
    return found.values


def describe() -> str:
    """One line a preset, for help texts."""
    return "; ".join(
        f"{name}: "
        + ", ".join(f"{flag.replace('_', '-')} {value}" for flag, value in one.values.items())
        for name, one in PRESETS.items()
    )
