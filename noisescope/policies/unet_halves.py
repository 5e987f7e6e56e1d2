"""A UNet2DConditionModel's forward in two halves, so that replicas can share the first.

    half = encode(unet, noisy, t, conditioning)   # conv_in and down blocks, once for everyone
    guess = decode(unet, half)                    # middle and up blocks, once a replica

`decode(unet, encode(...))` equals `unet(...)`: same modules in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.policies.denoising import Conditioning


@final
@dataclass(frozen=True)
class Half:
    """What the down blocks leave for the rest: rows B first in every tensor."""

    sample: Tensor
    residuals: tuple[Tensor, ...]
    time: Tensor  # [B, E]
    text: Tensor  # [B, L, D]

    def rows(self, index: Tensor) -> Half:
        """Some of the rows."""
        residuals = tuple(residual[index] for residual in self.residuals)
        return Half(self.sample[index], residuals, self.time[index], self.text[index])


def encode(unet: Any, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Half:
    """Time embedding, first convolution and down blocks."""
    noisy = noisy.to(unet.dtype)
    time = unet.time_embedding(unet.get_time_embed(sample=noisy, timestep=t), None)
    added = dict(conditioning.added) or None
    augmented = unet.get_aug_embed(
        emb=time, encoder_hidden_states=conditioning.text, added_cond_kwargs=added
    )
    time = time if augmented is None else time + augmented
    text = unet.process_encoder_hidden_states(
        encoder_hidden_states=conditioning.text, added_cond_kwargs=added
    )
    sample = unet.conv_in(noisy)
    residuals = (sample,)
    for block in unet.down_blocks:
        sample, left = block(**_inputs(block, sample, time, text))
        residuals += tuple(left)
    return Half(sample, residuals, time, text)


def decode(unet: Any, half: Half) -> Tensor:
    """Middle block, up blocks and last convolution: the prediction [B, C, h, w]."""
    sample, residuals = half.sample, half.residuals
    if unet.mid_block is not None:
        sample = unet.mid_block(**_inputs(unet.mid_block, sample, half.time, half.text))
    for block in unet.up_blocks:
        count = len(block.resnets)
        sample = block(
            **_inputs(block, sample, half.time, half.text),
            res_hidden_states_tuple=residuals[-count:],
        )
        residuals = residuals[:-count]
    if unet.conv_norm_out is not None:
        sample = unet.conv_act(unet.conv_norm_out(sample))
    guess: Tensor = unet.conv_out(sample)
    return guess


def _inputs(block: Any, sample: Tensor, time: Tensor, text: Tensor) -> dict[str, Tensor]:
    """A block's arguments: text only where it attends to it."""
    inputs = {"hidden_states": sample, "temb": time}
    if any(type(part).__name__ == "Transformer2DModel" for part in block.modules()):
        inputs["encoder_hidden_states"] = text
    return inputs
