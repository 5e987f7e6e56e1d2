"""Run a transformers model over tokenised texts in padded batches of similar length.

    rows = batched_rows(model, texts, compute, name_of, limit)   # group -> [n, D_g], in their order

For models that are read at once (reward models, encoders); causal language models pack their
texts instead (`packing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import ModelError, first_line
from noisescope.models.checkpoint import Checkpoint
from noisescope.models.memory import Limit, OomRetry

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]
#: Tokens of a padded batch, by device.
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
#: Inputs of the model by name, each [B, T] -> group -> [B, D_g].
Compute = Callable[[dict[str, "torch.Tensor"]], dict[str, "torch.Tensor"]]


@final
@dataclass(frozen=True)
class Text:
    """Token ids of a text and, if the model reads them, the type of each (first or second text)."""

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()

    @classmethod
    def of(cls, encoded: Mapping[str, Sequence[int]], limit: int) -> Text:
        """The last `limit` tokens of what a tokenizer returned."""
        types = encoded.get("token_type_ids", ())
        return cls(tuple(encoded["input_ids"])[-limit:], tuple(types)[-limit:])


def load_reader(
    kind: Any, found: Checkpoint, device: str, **settings: Any
) -> tuple[Any, Any, list[str]]:
    """Load a model by the transformers class `kind`, and its tokenizer with these settings.

    Return (model in evaluation mode, tokenizer, names of missing weights). Raises ModelError and
    UsageError.
    """
    from transformers import AutoTokenizer

    from noisescope.models.device import pick_device

    where = pick_device(device)
    try:
        model, notes = kind.from_pretrained(
            found.directory,
            use_safetensors=True,
            output_loading_info=True,
            dtype="auto",
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            found.directory, trust_remote_code=False, **settings
        )
    except Exception as error:  # of many kinds; all mean "does not load"
        raise ModelError(f"{found.name} does not load: {first_line(error)}") from error
    model = model.float() if where.type == "cpu" else model
    return model.to(where).eval().requires_grad_(False), tokenizer, sorted(notes["missing_keys"])


def padded(texts: Sequence[Text], pad: int) -> dict[str, torch.Tensor]:
    """Inputs of a model by name, padded on the right to the longest text, [B, T]."""
    import torch

    width = max(len(text.ids) for text in texts)
    ids = [[*text.ids, *[pad] * (width - len(text.ids))] for text in texts]
    mask = [[1] * len(text.ids) + [0] * (width - len(text.ids)) for text in texts]
    inputs = {"input_ids": ids, "attention_mask": mask}
    if texts[0].types:
        inputs["token_type_ids"] = [
            [*text.types, *[0] * (width - len(text.types))] for text in texts
        ]
    return {name: torch.tensor(rows) for name, rows in inputs.items()}


def batched_rows(
    model: Any,
    texts: Sequence[Text],
    compute: Compute,
    name_of: Callable[[int], str],
    limit: Limit,
    pad: int = 0,
) -> dict[str, Float]:
    """Rows of `compute` for each text, padded on the right with `pad`, group -> [n, D_g] float32.

    A batch that does not fit into memory is halved. Raises ModelError naming a text that does not
    fit alone.
    """
    import torch

    def rows_of(part: Sequence[int]) -> dict[str, Float]:
        inputs = padded([texts[one] for one in part], pad)
        found = compute({name: rows.to(model.device) for name, rows in inputs.items()})
        return {name: values.float().cpu().numpy() for name, values in found.items()}

    retry = OomRetry("texts", name_of, limit)
    budget = BATCH_TOKENS.get(model.device.type, 4096)
    parts: dict[str, list[Float]] = {}
    order: list[int] = []
    with torch.inference_mode():
        for batch in by_length([len(text.ids) for text in texts], budget):
            for part, found in retry.run(rows_of, batch):
                order += part
                for name, values in found.items():
                    parts.setdefault(name, []).append(values)
    back = np.argsort(np.array(order, np.int64))
    return {name: np.concatenate(values)[back] for name, values in parts.items()}


def by_length(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions in order of size, in parts of at most `budget` when padded (or one text)."""
    part: list[int] = []
    for one in sorted(range(len(sizes)), key=lambda at: sizes[at]):
        if part and (len(part) + 1) * sizes[one] > budget:
            yield part
            part = []
        part.append(one)
    if part:
        yield part
