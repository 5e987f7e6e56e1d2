"""A reward model of text: a transformers sequence classifier with one output.

The conversation goes through the tokenizer's chat template; without one, prompt and response
are encoded as two texts, as the older reward models were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError
from noisescope.evaluate.judges.base import find_judge
from noisescope.evaluate.results import Duel, JudgeCard, Output, Prompt, Verdict, by_score

if TYPE_CHECKING:
    from noisescope.models.checkpoint import Checkpoint

BATCH = 8
LONGEST = 4096
CONVERT = (
    'Convert it once, where you trust it: python -c "from transformers import '
    "AutoModelForSequenceClassification as M; M.from_pretrained('{0}').save_pretrained("
    "'{0}-safe')\", and copy its tokenizer files."
)


@final
@dataclass(frozen=True)
class RewardJudge:
    """Scores each response by the classifier's one output."""

    card: JudgeCard
    found: Checkpoint
    device: str

    def cost(self, duels: int) -> str:
        return ""

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """(model, tokenizer). Raises ModelError for another kind of model."""
        return _load(self.found, self.device)

    def judge(self, duels: Sequence[Duel]) -> list[Verdict]:
        return by_score(
            self._scores([(duel.prompt, duel.policy) for duel in duels]),
            self._scores([(duel.prompt, duel.against) for duel in duels]),
        )

    def _scores(self, told: Sequence[tuple[Prompt, Output]]) -> list[float]:
        import torch

        from noisescope.models.forward import setting

        model, tokenizer = self.parts
        limit = min(LONGEST, setting(model, "max_position_embeddings") or LONGEST)
        scores: list[float] = []
        for start in range(0, len(told), BATCH):
            ids = [self._ids(tokenizer, p, str(r), limit) for p, r in told[start : start + BATCH]]
            padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                logits = model(
                    input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
                ).logits
            scores += logits[:, 0].float().tolist()
        return scores

    def _ids(self, tokenizer: Any, prompt: Prompt, response: str, limit: int) -> list[int]:
        """Token ids; what is too long loses its beginning, so that the response stays."""
        if tokenizer.chat_template is None:
            ids = tokenizer(prompt.text, response, verbose=False)["input_ids"]
        else:
            turns = [{"role": t.role, "content": t.content} for t in prompt.turns or ()]
            turns = turns or [{"role": "user", "content": prompt.text}]
            whole = [*turns, {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(whole, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return list(ids)[-limit:]


def open_reward(model: str, device: str) -> RewardJudge:
    """The judge of a directory or Hub name. Raises ModelError."""
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
    except Exception as error:  # many kinds, all mean "does not load"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{found.name} does not load: {reason}", hint=None) from error
    lacking = sorted(notes["missing_keys"])
    if model.config.num_labels != 1 or lacking:
        told = f"lacks {lacking[0]}" if lacking else f"has {model.config.num_labels} outputs"
        raise ModelError(
            f"{found.name} is no reward model: it {told}",
            hint="Name a sequence classifier with one output, trained as a reward model.",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if where.type == "cpu":
        model = model.float()
    return model.to(where).eval().requires_grad_(False), tokenizer
