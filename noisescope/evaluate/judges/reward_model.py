"""Judge responses by a reward model: a transformers sequence classifier with one output.

The conversation goes through the tokenizer's chat template; without one, prompt and response
are encoded as two texts, as older reward models were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError, first_line
from noisescope.evaluate.comparison import Comparison, JudgeCard, Output, Prompt, Verdict, by_score
from noisescope.evaluate.judges.base import find_judge
from noisescope.pairs import Message

if TYPE_CHECKING:
    from noisescope.models.checkpoint import Checkpoint

BATCH = 8
LONGEST = 4096
CONVERT = (
    'Convert it once, if you trust it: python -c "from transformers import '
    "AutoModelForSequenceClassification as M; M.from_pretrained('{0}').save_pretrained("
    "'{0}-safe')\", and copy its tokenizer files."
)


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
        return _load(self.found, self.device)

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        return by_score(
            self._scores([(c.prompt, c.policy) for c in comparisons]),
            self._scores([(c.prompt, c.against) for c in comparisons]),
        )

    def _scores(self, outputs: Sequence[tuple[Prompt, Output]]) -> list[float]:
        import torch

        from noisescope.models.forward import setting

        model, tokenizer = self.parts
        limit = min(LONGEST, setting(model, "max_position_embeddings") or LONGEST)
        scores: list[float] = []
        for start in range(0, len(outputs), BATCH):
            ids = [
                self._ids(tokenizer, p, str(r), limit) for p, r in outputs[start : start + BATCH]
            ]
            padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                logits = model(
                    input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
                ).logits
            scores += logits[:, 0].float().tolist()
        return scores

    def _ids(self, tokenizer: Any, prompt: Prompt, response: str, limit: int) -> list[int]:
        """Encode prompt and response; too long ones lose their beginning, not the response."""
        from noisescope.models.rendering import finished

        if tokenizer.chat_template is None:
            ids = tokenizer(prompt.text, response, verbose=False)["input_ids"]
        else:
            turns = prompt.turns or (Message("user", prompt.text),)
            text = finished(tokenizer, (*turns, Message("assistant", response)))
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return list(ids)[-limit:]


def open_reward(model: str, device: str) -> RewardJudge:
    """Open a reward model by directory or Hub name. Raises ModelError."""
    from noisescope.models.checkpoint import fingerprint

    found = find_judge(model, CONVERT.format(model))
    card = JudgeCard(
        "reward", model, "its model card's", "text", fingerprint(found, {"judge": "reward"})
    )
    return RewardJudge(card, found, device)


def _load(found: Checkpoint, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from noisescope.models.device import pick_device

    where = pick_device(device)
    try:
        model, notes = AutoModelForSequenceClassification.from_pretrained(
            found.directory, use_safetensors=True, output_loading_info=True, dtype="auto"
        )
        tokenizer = AutoTokenizer.from_pretrained(found.directory)
    except Exception as error:  # of many kinds; all mean "does not load"
        reason = first_line(error)
        raise ModelError(f"{found.name} does not load: {reason}", hint=None) from error
    missing = sorted(notes["missing_keys"])
    if model.config.num_labels != 1 or missing:
        fault = f"{model.config.num_labels} outputs" if not missing else f"no {missing[0]}"
        raise ModelError(
            f"{found.name} is not a reward model: it has {fault}",
            hint="Give a sequence classifier with one output, trained as a reward model.",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if where.type == "cpu":
        model = model.float()
    return model.to(where).eval().requires_grad_(False), tokenizer
