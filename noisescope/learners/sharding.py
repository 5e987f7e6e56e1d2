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

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, final

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from noisescope.learners.launching import reshards
from noisescope.replicas.adapters import block_list
from noisescope.training_pieces import whole

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

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
