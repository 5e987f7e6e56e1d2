"""Generative models an audit reads: causal language models and diffusion pipelines.

A `Policy` turns one distinct (prompt, response) into feature groups (for log-linear replicas) or
log-probabilities (for LoRA replicas). `load` opens a checkpoint; each family has files of its own.
May import `datasets`, `scoring`, `storage` and below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

from noisescope.pairs import Item as Item
from noisescope.pairs import Modality

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from noisescope.models.latents import Encodings


@final
@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model: `fingerprint` covers config, tokenizer, weights and feature settings."""

    id: str
    revision: str | None
    fingerprint: str


class Policy(Protocol):
    """What an audit needs of a model."""

    @property
    def modality(self) -> Modality: ...

    @property
    def identity(self) -> ModelIdentity: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Work of each item, [n] (tokens, or denoiser calls): for bucketing and estimates."""

    def features(self, items: Sequence[Item]) -> dict[str, NDArray[np.float32]]:
        """Feature groups, group -> [n, D_g]; an item's row does not depend on its batch-mates."""

    def open_encodings(self, directory: Path) -> Encodings | None:
        """The cache of the denoiser's inputs, kept in `directory`; None for text."""
