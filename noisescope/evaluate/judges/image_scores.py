"""Judge images by a model that scores one at a time (`models.image_scores`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from noisescope.evaluate.comparison import Comparison, JudgeCard, Output, Verdict, by_score
from noisescope.models.image_scores import SCORERS, ImageScorer


@final
@dataclass(frozen=True)
class ImageJudge:
    """The image with the higher score wins."""

    card: JudgeCard
    scorer: ImageScorer

    def cost(self, comparisons: int) -> str:
        return ""

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        mine = self._scores(comparisons, [c.policy for c in comparisons])
        return by_score(mine, self._scores(comparisons, [c.against for c in comparisons]))

    def _scores(self, comparisons: Sequence[Comparison], images: Sequence[Output]) -> list[float]:
        shown = [image for image in images if isinstance(image, bytes)]
        assert len(shown) == len(images)
        return self.scorer.scores([c.prompt.text for c in comparisons], shown)


def open_image_judge(name: str, model: str, licence: str, device: str) -> ImageJudge:
    """Open the scorer `name` as a judge. Raises ModelError."""
    scorer = SCORERS[name].open(name, model, device)
    return ImageJudge(JudgeCard(name, model, licence, "image", scorer.fingerprint), scorer)
