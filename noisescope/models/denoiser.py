"""Run a pipeline's denoiser: whole, or in two halves of which the first is shared by replicas.

    guess, target = denoiser.predict(latents, conditioning, t, eps)     # [B, C, h, w], float32
    half = denoiser.below(noisy, t, conditioning, split)                # lower blocks, once
    guess = denoiser.above(half)                                        # the rest, per replica

What differs between UNets and transformers, epsilon, v, EDM and flow is in `Family` and `Schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from torch import nn

from noisescope.models.denoising import Conditioning
from noisescope.models.families import Family
from noisescope.models.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class Half:
    """Outputs of the lower blocks by number, and the denoiser's inputs; rows B first in all."""

    outputs: dict[int, Any]
    noisy: Tensor
    t: Tensor
    conditioning: Conditioning
    split: int

    def rows(self, index: Tensor) -> Half:
        """Some of the rows, repeats allowed."""
        outputs = {number: _rows(value, index) for number, value in self.outputs.items()}
        conditioning = self.conditioning.rows(index)
        return Half(outputs, self.noisy[index], self.t[index], conditioning, self.split)


def _rows(value: Any, index: Tensor) -> Any:
    """Rows of every tensor in nested tuples; None stays None."""
    if isinstance(value, tuple):
        return tuple(_rows(part, index) for part in value)
    return None if value is None else value[index]


@final
@dataclass(frozen=True)
class Denoiser:
    """A denoising model of a pipeline `pipe` (its own, or a copy) with its family and schedule."""

    model: Any
    pipe: Any
    family: Family
    schedule: Schedule

    def __call__(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The prediction [B, C, h, w] from noisy latents at steps t [B]."""
        times = self.schedule.times.to(t.device)[t]
        inputs = noisy.to(self.model.dtype)
        return self.family.forward(self.pipe, self.model, inputs, times, conditioning)

    def predict(
        self, latents: Tensor, conditioning: Conditioning, t: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(prediction, target), both [B, C, h, w] float32, of latents noised to t [B] with eps."""
        guess = self(self.schedule.noisy(latents, t, eps), t, conditioning)
        return guess.float(), self.schedule.target(latents, t, eps).float()

    def errors(self, latents: Tensor, conditioning: Conditioning, t: Tensor, eps: Tensor) -> Tensor:
        """e of Eq. 6, [B]: squared error of the prediction, mean over the latent's dimensions."""
        guess, target = self.predict(latents, conditioning, t, eps)
        return (guess - target).square().mean(dim=(1, 2, 3))

    @property
    def blocks(self) -> list[tuple[str, nn.Module]]:
        """The blocks in running order, by full name (the middle block of a UNet is not listed)."""
        lists = (*self.family.lower, *self.family.upper)
        return [
            (f"{name}.{number}", block)
            for name in lists
            for number, block in enumerate(self.model.get_submodule(name))
        ]

    def split(self, layers: int | None = None) -> int:
        """The number of blocks below the adapted ones.

        The adapted blocks are the last `layers`; None: a UNet's up blocks, half of a transformer's.
        A UNet is always split in its middle, where its skip connections are complete.
        """
        count = len(self.blocks)
        lower = sum(len(self.model.get_submodule(name)) for name in self.family.lower)
        if lower:
            return lower
        return count // 2 if layers is None else max(0, count - layers)

    def upper_names(self, layers: int | None) -> list[str]:
        """Names of the last `layers` blocks; None: those above `split`."""
        names = [name for name, _ in self.blocks]
        own = names[self.split() if layers is None or self.family.lower else 0 :]
        return own if layers is None else own[-layers:]

    def below(self, noisy: Tensor, t: Tensor, conditioning: Conditioning, split: int) -> Half:
        """Run the blocks below number `split`, and nothing above them."""
        outputs: dict[int, Any] = {}

        def stop(*_: object) -> None:
            raise _StopForward

        def keep(number: int) -> Callable[..., None]:
            return lambda module, arguments, output: outputs.__setitem__(number, output)

        blocks = self.blocks
        first = [blocks[split][1]]
        if self.family.lower and self.model.mid_block is not None:
            first.append(self.model.mid_block)
        hooks = [block.register_forward_pre_hook(stop) for block in first]
        hooks += [blocks[n][1].register_forward_hook(keep(n)) for n in self._kept(split)]
        try:
            self(noisy, t, conditioning)
        except _StopForward:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return Half(outputs, noisy, t, conditioning, split)

    def above(self, half: Half) -> Tensor:
        """The prediction [B, C, h, w] from the blocks at and above the split."""
        with self._replayed(half):
            return self(half.noisy, half.t, half.conditioning)

    def _kept(self, split: int) -> list[int]:
        """Lower blocks whose outputs are needed above: all of a UNet's, of a transformer the last
        of each list."""
        if self.family.lower:
            return list(range(split))
        lists = [name.rpartition(".")[0] for name, _ in self.blocks]
        return [n for n in range(split) if n == split - 1 or lists[n] != lists[n + 1]]

    @contextmanager
    def _replayed(self, half: Half) -> Iterator[None]:
        """Replace each block below the split by the output recorded at it, or next after it."""
        lower = self.blocks[: half.split]
        kept = sorted(half.outputs)
        try:
            for number, (name, _) in enumerate(lower):
                output = half.outputs[next(n for n in kept if n >= number)]
                self.model.set_submodule(name, _Replay(output))
            yield
        finally:
            for name, block in lower:
                self.model.set_submodule(name, block)


@final
class _Replay(nn.Module):
    """A block that returns what it is given."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: object, **kwargs: object) -> Any:
        return self.output


class _StopForward(Exception):
    """Ends a forward pass at the first upper block."""


def image_tokens(output: Any, grid: tuple[int, int]) -> Tensor:
    """A block's output as a map [B, D, h, w]: a UNet's own, or a transformer's image tokens."""
    states: Tensor = output[-1] if isinstance(output, tuple) else output
    if states.ndim == 4:
        return states
    return states.transpose(1, 2).reshape(len(states), -1, *grid)
