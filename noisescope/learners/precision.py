"""Number types of a training: what weights are loaded in, and what accelerate computes in.

    precision("bfloat16", full=True, device="cuda", launched=None)   # ("float32", "bf16")

Adapters are float32 on weights of the type asked for. Full fine-tuning keeps float32 weights and
computes below them in the type asked for. float16 has so few exponents that gradients vanish
without loss scaling, which exists on GPUs.
"""

from __future__ import annotations

from noisescope.errors import UsageError

#: Our names of the number types that accelerate's launcher may set (`--mixed_precision`).
LAUNCHED = {"bf16": "bfloat16", "fp16": "float16"}


def precision(
    dtype: str, *, full: bool, device: str, launched: str | None = None
) -> tuple[str, str]:
    """(type the weights are loaded in, accelerate's mixed precision).

    `launched` is what the launcher set (ACCELERATE_MIXED_PRECISION): it holds where `dtype` is
    auto. `device` auto counts as a GPU where there is one. Raises UsageError.
    """
    if dtype == "auto" and launched not in (None, "", "no"):
        if launched not in LAUNCHED:
            raise UsageError(
                f"accelerate's mixed precision {launched} is not one this loop knows",
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
    """Whether `device` means a CUDA GPU here."""
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()
