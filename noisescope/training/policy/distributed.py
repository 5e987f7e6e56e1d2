"""Check what `accelerate launch` requests, and choose the number types of a training."""

from __future__ import annotations

import os

from noisescope.errors import UsageError

#: Environment variables of launchers that split a model's weights among processes.
SPLITTING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
#: Our names of the number types that accelerate's launcher may set (`--mixed_precision`).
LAUNCHED = {"bf16": "bfloat16", "fp16": "float16"}


def check_launch() -> None:
    """Raise UsageError if the launcher splits the model's weights among processes.

    A forward of this loop is no call of the model (prompts packed together, blocks below the first
    adapted one skipped, the head at response tokens alone), so the hooks that gather the weights
    before a call never run.
    """
    for variable, name in SPLITTING.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UsageError(
                f"{name} splits the weights among processes, which this training loop does not do",
                hint="Use data parallelism (accelerate launch --multi_gpu), with "
                "--gradient-checkpointing to save memory. If the weights do not fit on one GPU: "
                "noisescope export --format trl, and train with "
                "noisescope.training.trl.AdaptiveDPOTrainer.",
            )


def precision(
    dtype: str, *, full: bool, device: str, launched: str | None = None
) -> tuple[str, str]:
    """(type the weights are loaded in, accelerate's mixed precision).

    `launched` is the launcher's setting (ACCELERATE_MIXED_PRECISION), used if `dtype` is auto.
    `device` auto counts as a GPU if there is one. Raises UsageError.
    """
    if dtype == "auto" and launched not in (None, "", "no"):
        if launched not in LAUNCHED:
            raise UsageError(
                f"accelerate's mixed precision {launched} is not supported",
                hint=f"Launch with --mixed_precision {' or '.join(LAUNCHED)}, or give --dtype.",
            )
        dtype = LAUNCHED[launched]
    if dtype == "float16":
        if not on_gpu(device):
            raise UsageError(
                "--dtype float16 needs loss scaling, and that needs a GPU",
                hint="Use --dtype bfloat16, or float32.",
            )
        return ("float32" if full else "float16"), "fp16"
    if not full:
        return dtype, "no"
    return "float32", "bf16" if dtype == "bfloat16" else "no"


def on_gpu(device: str) -> bool:
    """Whether `device` is a CUDA GPU."""
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()
