"""Judges that score one output at a time with a model: image scorers and reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from noisescope.errors import ModelError
from noisescope.evaluate.comparison import Comparison, JudgeCard, Output, Prompt, Verdict, by_score
from noisescope.models.checkpoint import Checkpoint, find_converted, fingerprint
from noisescope.models.image_scores import SCORERS, ImageScorer
from noisescope.models.reward import CONVERT, conversation, load_classifier, longest
from noisescope.models.text_batches import padded

BATCH = 8


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


@final
@dataclass(frozen=True)
class RewardJudge:
    """Scores each response with the classifier's output."""

    card: JudgeCard
    found: Checkpoint
    device: str

    def cost(self, comparisons: int) -> str:
        return ""

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """(model, tokenizer). Raises ModelError if it is not a reward model."""
        model, tokenizer = load_classifier(self.found, self.device)
        if model.config.num_labels != 1:
            raise ModelError(
                f"{self.found.name} is not a reward model: it has {model.config.num_labels} "
                "outputs",
                hint="Give a sequence classifier with one output, trained as a reward model.",
            )
        return model, tokenizer

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        return by_score(
            self._scores([(c.prompt, c.policy) for c in comparisons]),
            self._scores([(c.prompt, c.against) for c in comparisons]),
        )

    def _scores(self, outputs: Sequence[tuple[Prompt, Output]]) -> list[float]:
        import torch

        model, tokenizer = self.parts
        limit = longest(model, tokenizer)
        scores: list[float] = []
        for start in range(0, len(outputs), BATCH):
            texts = [
                conversation(tokenizer, p.text, p.turns or (), str(r), limit)
                for p, r in outputs[start : start + BATCH]
            ]
            inputs = padded(texts, model.config.pad_token_id)
            with torch.inference_mode():
                logits = model(**{name: x.to(model.device) for name, x in inputs.items()}).logits
            scores += logits[:, 0].float().tolist()
        return scores


def open_reward(model: str, device: str) -> RewardJudge:
    """Open a reward model by directory or Hub name. Raises ModelError."""
    found = find_converted(model, CONVERT.format(model))
    card = JudgeCard(
        "reward", model, "its model card's", "text", fingerprint(found, {"judge": "reward"})
    )
    return RewardJudge(card, found, device)
