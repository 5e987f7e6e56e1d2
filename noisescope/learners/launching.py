"""What accelerate's launcher asks for, and whether this loop can do it.

check_launch(settings, "text")    # raises UsageError, before anything is computed
sharding()                        # True: FSDP 2, see `learners.sharding`
"""

from __future__ import annotations

import os

from noisescope.errors import UsageError
from noisescope.learners.settings import TrainSettings

#: Settings of accelerate's FSDP that this loop does not follow -> what to do instead.
FOREIGN = {
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params: false (weights stay on the device)",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing: false, and give "
    "--gradient-checkpointing to noisescope",
}


def sharding() -> bool:
    """Whether the launcher asks for weights cut among several processes (FSDP)."""
    return _on("ACCELERATE_USE_FSDP") and int(os.environ.get("WORLD_SIZE", "1")) > 1


def reshards() -> bool:
    """Whether a block's weights go again after the forward (fsdp_reshard_after_forward)."""
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("0", "false")


def check_launch(settings: TrainSettings, modality: str) -> None:
    """Raise UsageError naming what the launcher asks for and cannot have."""
    if _on("ACCELERATE_USE_DEEPSPEED"):
        raise UsageError(
            "DeepSpeed drives a training by its own engine, which this loop does not know",
            hint="FSDP 2 cuts weights, gradients and AdamW's moments in the same way (ZeRO 3): "
            "accelerate launch --use_fsdp --fsdp_version 2.",
        )
    if not _on("ACCELERATE_USE_FSDP"):
        return
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UsageError(
            f"FSDP version {version} is not one this loop knows",
            hint="Launch with --fsdp_version 2 (fsdp_version: 2 in accelerate's config).",
        )
    if modality != "text":
        raise UsageError(
            "FSDP cuts text models alone: a UNet's adapters fit every GPU that holds the UNet",
            hint="Launch with plain data parallelism: accelerate launch --multi_gpu.",
        )
    for name, remedy in FOREIGN.items():
        if _on(name):
            raise UsageError(
                f"{name} is on, which this loop does not follow", hint=f"Set {remedy}."
            )
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16" and settings.full:
        raise UsageError(
            "FSDP with --full does not scale its loss, and float16 needs that",
            hint="Use --dtype bfloat16, or float32.",
        )


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")
