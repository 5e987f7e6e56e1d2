"""Base classes of text and image policies in training: adapters on a frozen model, or all weights.

A subclass computes the log-likelihoods of both sides of its pairs (`sides`) and saves the result
(`save`); see `training.policy.TrainablePolicy`.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from noisescope.storage.files import TEMPORARY_PREFIX
from noisescope.training.loop import clip_norm
from noisescope.training.policy import Int, PairLogps

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.training.lora.adapters import Adapters
    from noisescope.training.pair_data import PairData


class Space(Protocol):
    """The pairs of a policy, ready for its forward."""

    @property
    def data(self) -> PairData: ...

    @property
    def work(self) -> Int: ...

    @property
    def budget(self) -> int: ...


SpaceT = TypeVar("SpaceT", bound=Space)


@dataclass
class TrainedModel(ABC, Generic[SpaceT]):
    """A policy in training over the pairs of `space`."""

    space: SpaceT

    @property
    def data(self) -> PairData:
        return self.space.data

    @property
    def work(self) -> Int:
        return self.space.work

    @abstractmethod
    def pair_logps(
        self, pairs: Int, draw: int, trained: Sequence[int] = (0,), watched: Sequence[int] = ()
    ) -> PairLogps: ...

    @abstractmethod
    def save(self, directory: Path) -> list[str]: ...


@dataclass
class AdaptedModel(TrainedModel[SpaceT]):
    """LoRA: M adapters on one frozen model; its reference is the model with none."""

    adapters: Adapters

    @property
    def budget(self) -> int:
        return self.space.budget // self.adapters.replicas

    def trainable(self) -> dict[str, Tensor]:
        return dict(self.adapters.parameters())

    def clip(self, max_norm: float | None) -> float:
        return self.adapters.clip(max_norm)

    def average(self, replica: int, copies: Mapping[str, Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, tensor in self.adapters.parameters():
                tensor[replica] = copies[name][0]

    def detach(self) -> None:
        self.adapters.detach()


@dataclass
class WholeModel(TrainedModel[SpaceT]):
    """Full fine-tuning of `model`."""

    @property
    @abstractmethod
    def model(self) -> Any: ...

    @property
    def budget(self) -> int:
        return self.space.budget

    def trainable(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    def clip(self, max_norm: float | None) -> float:
        return clip_norm(self.trainable().values(), max_norm)

    def average(self, replica: int, copies: Mapping[str, Tensor]) -> None:
        raise AssertionError("a whole model has no copies beside it")

    def detach(self) -> None:
        self.model.requires_grad_(False)


def publish(directory: Path, *savers: Callable[[str], object]) -> list[str]:
    """Let each saver write into a directory of its own, then move all files; their names."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=TEMPORARY_PREFIX) as held:
        for save in savers:
            save(held)
        names = sorted(path.name for path in Path(held).iterdir())
        for name in names:
            (Path(held) / name).replace(directory / name)
    return names
