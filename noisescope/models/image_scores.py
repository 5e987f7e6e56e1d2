"""Models that score an image for its prompt: for judging two models, and as evidence.

scorer = SCORERS["hpsv2"].open("hpsv2", "models/hpsv2", "auto")
scorer.scores(prompts, images)           # [n]; images are the bytes of PNG, JPEG, ...
load_image_scores("hpsv2=models/hpsv2", dataset.images).features(items)   # "score" [n, 1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.models import Item, ModelIdentity
from noisescope.models.checkpoint import Checkpoint
from noisescope.models.clip import open_aesthetic, open_clip
from noisescope.models.image_reward import open_image_reward
from noisescope.pairs import ImageStore, Modality

Float = NDArray[np.float32]
#: Units of work of an image, about the patches of a large vision model.
WORK = 256


class ImageScorer(Protocol):
    """Scores images; higher is better. The model is loaded at first use."""

    @property
    def found(self) -> Checkpoint: ...

    @property
    def fingerprint(self) -> str: ...

    def scores(self, prompts: Sequence[str], images: Sequence[bytes]) -> list[float]:
        """The score of each image for its prompt, [n]. Raises ModelError."""


@final
@dataclass(frozen=True)
class ScorerKind:
    """A known scorer: its model and that model's licence, a description, and how to open it.

    `open(name, model, device)` raises ModelError.
    """

    model: str
    licence: str
    about: str
    open: Callable[[str, str, str], ImageScorer]


SCORERS: dict[str, ScorerKind] = {
    "clip": ScorerKind(
        "openai/clip-vit-large-patch14", "MIT", "CLIP's likeness of image and prompt", open_clip
    ),
    "pickscore": ScorerKind(
        "yuvalkirstain/PickScore_v1",
        "none stated with its code; see its card",
        "CLIP-H on Pick-a-Pic choices",
        open_clip,
    ),
    "hpsv2": ScorerKind("xswu/HPSv2", "Apache-2.0", "CLIP-H on HPD v2 choices", open_clip),
    "aesthetic": ScorerKind(
        "openai/clip-vit-large-patch14",
        "MIT (CLIP), Apache-2.0 (LAION's layers)",
        "LAION's predictor; the prompt is not used",
        open_aesthetic,
    ),
    "image-reward": ScorerKind(
        "zai-org/ImageReward", "Apache-2.0", "BLIP on ranked images", open_image_reward
    ),
}


@final
@dataclass(frozen=True)
class ImageScores:
    """A scorer as a source of evidence: one number for each distinct (prompt, image)."""

    scorer: ImageScorer
    identity: ModelIdentity
    images: ImageStore
    modality: Modality = "image"

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Work of each item, [n]."""
        return np.full(len(items), WORK, np.int64)

    def features(self, items: Sequence[Item]) -> dict[str, Float]:
        """`score` [n, 1]. Raises ModelError, and DataError for an image that is gone."""
        images = [self.images.get(item.response) for item in items]
        found = self.scorer.scores([item.prompt for item in items], images)
        return {"score": np.asarray(found, np.float32)[:, None]}


def load_image_scores(name: str, images: ImageStore, *, device: str = "auto") -> ImageScores:
    """Open the scorer NAME or NAME=MODEL. Raises UsageError and ModelError."""
    kind_name, _, model = name.partition("=")
    kind = SCORERS.get(kind_name)
    if kind is None:
        raise UsageError(
            f"--evidence image-reward:{name}: no such scorer",
            hint=f"One of {', '.join(SCORERS)}; image-reward:NAME=DIRECTORY for its files.",
        )
    scorer = kind.open(kind_name, model or kind.model, device)
    identity = ModelIdentity(name, scorer.found.revision, scorer.fingerprint)
    return ImageScores(scorer, identity, images)
