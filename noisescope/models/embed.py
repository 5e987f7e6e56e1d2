"""Text encoders: the mean-pooled last state of a response, and its similarity to the prompt.

    encoder = load_encoder("sentence-transformers/all-MiniLM-L6-v2")
    encoder.features(items)   # "response" [n, D], "similarity" [n, 1]

Any transformers encoder; a sentence-transformers directory is read as the transformers model that
it holds. Both texts are read without a chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import ModelError
from noisescope.models import Item, ModelIdentity
from noisescope.models.anatomy import setting
from noisescope.models.checkpoint import find_converted, fingerprint
from noisescope.models.memory import Limit
from noisescope.models.text_batches import Text, batched_rows, load_reader
from noisescope.pairs import Modality

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]
#: Most tokens of a text.
LONGEST = 8192
#: Bumped whenever the same model would give other features.
VERSION = 1
CONVERT = (
    'Convert it once, if you trust it: python -c "from transformers import AutoModel as M; '
    "M.from_pretrained('{0}').save_pretrained('{0}-safe')\", and copy its tokenizer files."
)


@final
class Encoder:
    """A loaded encoder; see `load_encoder`."""

    modality: Modality = "text"

    def __init__(self, model: Any, tokenizer: Any, identity: ModelIdentity) -> None:
        self.model, self.tokenizer, self.identity = model, tokenizer, identity
        positions = setting(model, "max_position_embeddings") or LONGEST
        self.longest = int(min(LONGEST, positions, tokenizer.model_max_length))
        self.limit = Limit()

    def encode(self, texts: Sequence[str]) -> list[Text]:
        """Tokens of each text, cut at its end."""
        cut = {"truncation": True, "max_length": self.longest}
        return [Text.of(self.tokenizer(text or " ", **cut), self.longest) for text in texts]

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Tokens of each response, [n]."""
        return np.array([len(t.ids) for t in self.encode([i.response for i in items])], np.int64)

    def features(self, items: Sequence[Item]) -> dict[str, Float]:
        """`response` [n, D], of norm 1, and `similarity` [n, 1], its cosine with the prompt's."""
        prompts = list(dict.fromkeys(item.prompt for item in items))
        whole = self.embed([*prompts, *(item.response for item in items)])
        place = {prompt: at for at, prompt in enumerate(prompts)}
        response = whole[len(prompts) :]
        asked = whole[[place[item.prompt] for item in items]]
        return {
            "response": response,
            "similarity": (asked * response).sum(axis=1, keepdims=True, dtype=np.float32),
        }

    def embed(self, texts: Sequence[str]) -> Float:
        """Mean of the last states over each text's tokens, scaled to norm 1, [n, D]."""
        return batched_rows(
            self.model,
            self.encode(texts),
            self._pool,
            lambda at: f"the text {texts[at][:40]!r}",
            self.limit,
            self.tokenizer.pad_token_id or 0,
        )["mean"]

    def _pool(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        states = self.model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][:, :, None].float()
        mean = (states * mask).sum(1) / mask.sum(1)
        return {"mean": torch.nn.functional.normalize(mean, dim=1)}


def load_encoder(name: str, *, device: str = "auto") -> Encoder:
    """Load an encoder by directory or Hub name. Raises ModelError and UsageError."""
    from transformers import AutoModel

    found = find_converted(name, CONVERT.format(name))
    model, tokenizer, missing = load_reader(AutoModel, found, device)
    missing = [key for key in missing if "pooler" not in key]
    if missing or model.config.is_encoder_decoder:
        fault = f"it has no {missing[0]}" if missing else "it has an encoder and a decoder"
        raise ModelError(
            f"{name} is not a text encoder: {fault}",
            hint="Give a model such as sentence-transformers/all-MiniLM-L6-v2.",
        )
    settings = {"embed": VERSION, "dtype": str(model.dtype)}
    return Encoder(
        model, tokenizer, ModelIdentity(name, found.revision, fingerprint(found, settings))
    )
