"""Rows of texts with pictures, and the check that they give the values of a plain forward.

    rows = verify_pictures(model, encoder)     # "padded" or "alone"
    corpus = whole_corpus(policy, items)       # tokens, and pictures where prompts show some

A text is a row of its own, padded on the right: what a model takes beside its ids (pixels, sizes of
pictures, types of tokens) is joined row by row, for rows whose pictures have one form.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from noisescope.datasets.images import image_key
from noisescope.errors import ModelError, first_line
from noisescope.models import Item
from noisescope.models.anatomy import REPORT, float32, head_states, padded, quantised
from noisescope.models.forward import Batch, response_logps, to_batch
from noisescope.models.packing import PADDING, Corpus, Packed, Rows, corpus_of, pack
from noisescope.models.verify import QUANTISED, ROUNDING, TOLERANCE
from noisescope.models.vision import UNCUT, VisionEncoder
from noisescope.pairs import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from noisescope.models.tokenize import Encoded

#: Sides of the pictures that a model is tried on.
WIDTH, HEIGHT = 96, 64


def picture_batch(
    model: Any, encoder: VisionEncoder, corpus: Corpus, items: Sequence[Item], part: Sequence[int]
) -> Batch:
    """Tensors of some items of a corpus, a row each, with their pictures."""
    packed = pack(corpus, part, 1)
    batch = to_batch(corpus, packed, model.device, model.dtype)
    order = list(dict.fromkeys(packed.owners.tolist()))  # the place of each row's item
    shown = encoder.inputs([items[at] for at in order], packed.ids.shape[1])
    return replace(batch, shown={name: _moved(model, one) for name, one in shown.items()})


class Reader(Protocol):
    """A policy that reads texts, with pictures or without."""

    @property
    def rows(self) -> Rows: ...

    @property
    def pictures(self) -> VisionEncoder | None: ...

    def encode(self, items: Sequence[Item]) -> Sequence[Encoded]: ...


def whole_corpus(policy: Reader, items: Sequence[Item]) -> Corpus:
    """Token ids of `items` for forwards that begin at the tokens, as adapters need them."""
    encoded = [(item.prompt, item.response) for item in policy.encode(items)]
    if policy.pictures is None:
        return corpus_of(encoded, policy.rows)
    shown = PictureRows(policy.pictures, items, together=policy.rows == "padded")
    return corpus_of(encoded, "alone", shown)


@final
@dataclass(frozen=True)
class PictureRows:
    """The pictures in the prompts of a corpus' items (`packing.Pictures`).

    Rows whose pictures have one form are run `together`, else each row alone.
    """

    encoder: VisionEncoder
    items: Sequence[Item]
    together: bool

    def states(self, model: Any, packed: Packed) -> Tensor:
        """What enters the output layer of `model`, [R, T, D]; differentiable."""
        import torch

        of_row = packed.items[list(dict.fromkeys(packed.owners.tolist()))]
        shown = [self.items[at] for at in of_row.tolist()]
        widths = (packed.slots != PADDING).sum(1)
        order, parts = [], []
        for rows in self.encoder.divided(shown, [range(len(shown))], alone=not self.together):
            width = int(widths[rows].max())
            inputs = self.encoder.inputs([shown[row] for row in rows], width)
            inputs["input_ids"] = torch.from_numpy(packed.ids[rows, :width])
            moved = {name: _moved(model, one) for name, one in inputs.items()}
            parts.append(head_states(model, [(slice(None), width)], **moved))
            order += rows
        states: Tensor = padded(parts)[np.argsort(order).tolist()]
        return states


def _moved(model: Any, tensor: Tensor) -> Tensor:
    """An input on the model's device, numbers in its type."""
    return tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)


@final
class _Probe:
    """Two pictures of noise and of a slope, as an `ImageStore`."""

    references: Mapping[str, tuple[str, ...]] = {}

    def __init__(self) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3))
        slope = np.broadcast_to(np.linspace(0, 255, WIDTH)[None, :, None], noise.shape)
        data = [_png(pixels.astype(np.uint8)) for pixels in (noise, slope)]
        self._data = {image_key(one): one for one in data}

    def get(self, key: str) -> bytes:
        """The picture's bytes."""
        return self._data[key]

    def items(self) -> list[Item]:
        """One picture with answers of two lengths, the other with the first answer."""
        one, other = self._data
        asked = [(one, "A picture."), (one, "It may be noise, or not."), (other, "A picture.")]
        found = []
        for at, (key, answer) in enumerate(asked):
            prompt = f"<image:{key}>\nWhat does it show?"
            found.append(Item(f"{at}", prompt, (Message("user", prompt),), answer))
        return found


def _png(pixels: Any) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def verify_pictures(model: Any, encoder: VisionEncoder) -> Rows:
    """How rows with pictures are run: "padded", or "alone" where rows of a batch differ from that.

    The truth is the model's own forward of one text at a time. Raises ModelError for a model whose
    log-probabilities differ from it, or do not depend on the picture.
    """
    import torch

    probe = _Probe()
    tried = VisionEncoder(encoder.processor, probe, UNCUT, encoder.name)
    items, name = probe.items(), type(model).__name__
    encoded = [(one.prompt, one.response) for one in tried.encode(items)]
    corpus = corpus_of(encoded, "padded")
    near = QUANTISED if quantised(model) else TOLERANCE
    with torch.no_grad(), float32(model):
        truth = [_plain(model, tried, item, *ids) for item, ids in zip(items, encoded, strict=True)]
        if not float((truth[0] - truth[2]).abs().max()) > ROUNDING:
            raise ModelError(
                f"{name} does not look at pictures: two of them give the same log-probabilities",
                hint=REPORT,
            )
        ways: tuple[tuple[Rows, list[list[int]]], ...] = (
            ("padded", [[0, 1, 2]]),
            ("alone", [[0], [1], [2]]),
        )
        for rows, parts in ways:
            found = _found(model, tried, corpus, items, parts)
            if found is not None and float((found - torch.cat(truth)).abs().max()) <= near:
                return rows
    raise ModelError(f"{name} takes pictures in a way noisescope does not support", hint=REPORT)


def _plain(
    model: Any, encoder: VisionEncoder, item: Item, prompt: Sequence[int], response: Sequence[int]
) -> Tensor:
    """Log-probabilities of a response by the model's own forward of one text."""
    import torch

    ids = torch.tensor([[*prompt, *response]], device=model.device)
    shown = encoder.inputs([item], ids.shape[1])
    inputs = {name: _moved(model, one) for name, one in shown.items()}
    mask = torch.ones_like(ids)
    try:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **inputs).logits
    except Exception as error:  # of many kinds
        raise ModelError(
            f"{type(model).__name__} does not take its processor's pictures: {first_line(error)}",
            hint=REPORT,
        ) from error
    own: Tensor = logits[0, -len(response) - 1 : -1].float().log_softmax(1)
    return own.gather(1, ids[0, -len(response) :, None])[:, 0]


def _found(
    model: Any,
    encoder: VisionEncoder,
    corpus: Corpus,
    items: Sequence[Item],
    parts: Sequence[Sequence[int]],
) -> Tensor | None:
    """Log-probabilities by our batches, in order of the items; None if the model fails."""
    import torch

    found: dict[int, Tensor] = {}
    try:
        for part in parts:
            batch = picture_batch(model, encoder, corpus, [items[at] for at in part], part)
            logps = response_logps(model, batch)
            for place, item in enumerate(part):
                found[item] = logps[batch.owners == place]
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError):
        return None
    return torch.cat([found[at] for at in range(len(items))])
