"""FSDP 2: a text model's weights cut among the processes of a launch, by accelerate's config.

    shards = cut_weights(model, accelerator.device, train=False, mixed="no")
    logps = shards(lambda: forward(model))     # every process runs as many of them

torch's `fully_shard` gathers a block when it runs and lets it go; what stands outside of the blocks
(embeddings, last norm, head) stays whole through a forward and its backward pass. Since a forward
here is no call of the model (packed rows, a cut below the first adapted block, the head at
response tokens alone), it runs inside `Shards`, which is the root that torch's hooks stand on.

LoRA: the frozen weights are cut; adapters, their gradients and moments are whole in every
process, and the loop adds gradients up as it does without FSDP. `--full`: weights, gradients and
moments are all cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, final

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from noisescope.errors import UsageError
from noisescope.training.lora.adapters import block_list
from noisescope.training.policy.settings import TrainSettings
from noisescope.training.state import whole

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

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


Result = TypeVar("Result")


class _Root(nn.Module):
    """Holds the model; its forward is whatever it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, act: Callable[[], Result]) -> Result:
        return act()


@final
class Shards:
    """A model whose weights are cut; a forward through it is `shards(lambda: ...)`."""

    def __init__(self, model: PreTrainedModel, root: nn.Module) -> None:
        self.model, self._root = model, root

    def __call__(self, act: Callable[[], Result]) -> Result:
        """What `act` gives, the model's outer weights whole while it runs and until its backward
        pass is through. Every process has to call it as often as the others."""
        result: Result = self._root(act)
        if not (isinstance(result, torch.Tensor) and result.requires_grad):
            # no backward pass is to come, which would let the outer weights go
            for module in self._root.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        return result

    def weights(self) -> dict[str, Tensor]:
        """The whole weights by name, tied ones the same tensor. Every process has to call it."""
        seen: dict[int, Tensor] = {}
        found = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen[id(tensor)] = whole(tensor)
            found[name] = seen[id(tensor)]
        return found


def cut_weights(
    model: PreTrainedModel, device: torch.device, *, train: bool, mixed: str = "no"
) -> Shards:
    """Cut `model` among all processes, in place, and move it to `device` piece by piece.

    `train`: whether its own weights will train; with `mixed` bf16 they are then gathered in
    bfloat16 and their gradients summed in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh

    model.requires_grad_(train)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if train and mixed == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in block_list(model):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshards())
    root = _Root(model)
    fully_shard(root, mesh=mesh, mp_policy=policy)
    shards = Shards(model, root)
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    with torch.no_grad():  # gathered first under inference_mode, they could never train
        shards(lambda: model(input_ids=ids, use_cache=False))
    return shards
