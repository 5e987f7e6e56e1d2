"""Reward models: transformers sequence classifiers that score a response.

    reward = load_reward("Skywork/Skywork-Reward-V2-Qwen3-0.6B")
    reward.features(items)   # "score" [n, K] and "state" [n, D], what the score is a function of

The conversation is rendered by the tokenizer's chat template. Without one, prompt and response
are encoded as two texts, as older reward models were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import ModelError
from noisescope.models import Item, ModelIdentity
from noisescope.models.anatomy import setting
from noisescope.models.checkpoint import Checkpoint, find_converted, fingerprint
from noisescope.models.memory import Limit
from noisescope.models.rendering import finished
from noisescope.models.text_batches import Text, batched_rows, load_reader
from noisescope.pairs import Message, Modality

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]
#: Most tokens of a conversation.
LONGEST = 4096
#: Bumped whenever the same model would give other features.
VERSION = 1
CONVERT = (
    'Convert it once, if you trust it: python -c "from transformers import '
    "AutoModelForSequenceClassification as M; M.from_pretrained('{0}').save_pretrained("
    "'{0}-safe')\", and copy its tokenizer files."
)


@final
class RewardModel:
    """A loaded sequence classifier: scores and states of responses; see `load_reward`."""

    modality: Modality = "text"

    def __init__(self, model: Any, tokenizer: Any, identity: ModelIdentity) -> None:
        self.model, self.tokenizer, self.identity = model, tokenizer, identity
        self.limit = longest(model, tokenizer)
        self.head = _head(model, identity.id)
        self.batch = Limit()

    def encode(self, items: Sequence[Item]) -> list[Text]:
        """Tokens of each conversation."""
        return [
            conversation(self.tokenizer, item.prompt, item.turns or (), item.response, self.limit)
            for item in items
        ]

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Tokens of each item, [n]."""
        return np.array([len(text.ids) for text in self.encode(items)], np.int64)

    def features(self, items: Sequence[Item]) -> dict[str, Float]:
        """`score` [n, K], the outputs, and `state` [n, D], what the last layer computes them from.

        Raises ModelError.
        """
        return batched_rows(
            self.model,
            self.encode(items),
            self._scores,
            lambda at: f"response {items[at].key} to {items[at].prompt[:40]!r}",
            self.batch,
            self.model.config.pad_token_id,
        )

    def _scores(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs and the states that they are a linear function of."""
        import torch

        seen: list[torch.Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            logits = self.model(**inputs).logits
        finally:
            hook.remove()
        state, ids = seen[-1], inputs["input_ids"]
        if state.ndim == 3:  # every token is scored, and the last one that is no padding counts
            places = torch.arange(ids.shape[1], device=ids.device)
            last = (places * (ids != self.model.config.pad_token_id)).argmax(1)
            state = state[torch.arange(len(ids), device=ids.device), last]
        if not torch.allclose(self.head(state), logits, rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"{self.identity.id} changes its scores in a way noisescope does not know",
                hint="Please report the architecture, and use another reward model meanwhile.",
            )
        return {"score": logits, "state": state}


def load_reward(name: str, *, device: str = "auto") -> RewardModel:
    """Load a reward model by directory or Hub name. Raises ModelError and UsageError."""
    found = find_converted(name, CONVERT.format(name))
    model, tokenizer = load_classifier(found, device)
    settings = {"reward": VERSION, "dtype": str(model.dtype)}
    identity = ModelIdentity(name, found.revision, fingerprint(found, settings))
    return RewardModel(model, tokenizer, identity)


def load_classifier(found: Checkpoint, device: str) -> tuple[Any, Any]:
    """(sequence classifier in evaluation mode, tokenizer). Raises ModelError and UsageError."""
    from transformers import AutoModelForSequenceClassification as Classifier

    model, tokenizer, missing = load_reader(Classifier, found, device, truncation_side="left")
    if missing:
        raise ModelError(
            f"{found.name} is not a reward model: it has no {missing[0]}",
            hint="Give a sequence classifier that was trained as a reward model.",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def longest(model: Any, tokenizer: Any) -> int:
    """Most tokens of a conversation that the model reads."""
    positions = setting(model, "max_position_embeddings") or LONGEST
    return int(min(LONGEST, positions, tokenizer.model_max_length))


def conversation(
    tokenizer: Any, prompt: str, turns: Sequence[Message], response: str, limit: int
) -> Text:
    """Encode prompt and response; too long ones lose their beginning, not the response."""
    if tokenizer.chat_template is None:
        cut = {
            "truncation": "longest_first",
            "max_length": limit,
        }  # on the left, see `load_classifier`
        return Text.of(tokenizer(prompt, response, **cut), limit)
    before = turns or (Message("user", prompt),)
    text = finished(tokenizer, (*before, Message("assistant", response)))
    return Text.of(tokenizer(text, add_special_tokens=False, verbose=False), limit)


def _head(model: Any, name: str) -> torch.nn.Linear:
    """The last linear layer, which gives the scores. Raises ModelError without one."""
    import torch

    inside = {id(module) for module in model.base_model.modules()}
    found = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
        and id(module) not in inside
        and module.out_features == model.config.num_labels
    ]
    if not found:
        raise ModelError(
            f"{name} does not end in a linear layer of {model.config.num_labels} outputs",
            hint="Please report the architecture, and use another reward model meanwhile.",
        )
    return found[-1]
