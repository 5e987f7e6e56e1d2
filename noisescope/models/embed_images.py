"""Encoders of image and text: an image's embedding, and its product with the caption's.

    encoder = load_image_encoder("google/siglip-base-patch16-224", dataset.images)
    encoder.features(items)   # "image", "product" [n, D], "similarity" [n, 1]

Any transformers model with an image and a text tower (CLIP, SigLIP, ...). The product of both
embeddings lets the replicas weigh each dimension of the similarity by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import ModelError, first_line
from noisescope.models import Item, ModelIdentity
from noisescope.models.checkpoint import find_converted, fingerprint
from noisescope.models.embed import CONVERT
from noisescope.models.memory import Limit, OomRetry
from noisescope.models.text_batches import load_reader
from noisescope.pairs import ImageStore, Modality

if TYPE_CHECKING:
    import torch

Float = NDArray[np.float32]
#: Images or captions per batch, and units of work of an image.
BATCH, WORK = 16, 256
#: Bumped whenever the same model would give other features.
VERSION = 1
#: Families whose text tower was trained on texts padded to its full length.
FULL_LENGTH = ("siglip", "siglip2")


@final
class ImageEncoder:
    """A loaded image and text encoder, and the images it reads; see `load_image_encoder`."""

    modality: Modality = "image"

    def __init__(
        self, model: Any, prepare: Any, tokenizer: Any, images: ImageStore, identity: ModelIdentity
    ) -> None:
        self.model, self.prepare, self.tokenizer = model, prepare, tokenizer
        self.images, self.identity = images, identity
        self.limit = Limit()

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Work of each item, [n]."""
        return np.full(len(items), WORK, np.int64)

    def features(self, items: Sequence[Item]) -> dict[str, Float]:
        """`image` [n, D], of norm 1; `product` [n, D] with the caption's; `similarity` [n, 1]."""
        image = self._embed([item.response for item in items], self._images, "images")
        caption = self._embed([item.prompt for item in items], self._texts, "captions")
        product = image * caption
        return {"image": image, "product": product, "similarity": product.sum(1, keepdims=True)}

    def _embed(
        self, values: Sequence[str], embed: Callable[[Sequence[str]], torch.Tensor], what: str
    ) -> Float:
        """Embeddings of norm 1, [n, D], computed once for equal values."""
        import torch

        def rows_of(part: Sequence[str]) -> Float:
            rows = torch.nn.functional.normalize(embed(part).float(), dim=-1)
            found: Float = rows.cpu().numpy()
            return found

        distinct = list(dict.fromkeys(values))
        retry: OomRetry[str] = OomRetry(
            what, lambda value: f"{what[:-1]} {value[:40]!r}", self.limit
        )
        found = []
        with torch.inference_mode():
            for start in range(0, len(distinct), BATCH):
                found += [rows for _, rows in retry.run(rows_of, distinct[start : start + BATCH])]
        row = {value: at for at, value in enumerate(distinct)}
        embedded: Float = np.concatenate(found)[[row[value] for value in values]]
        return embedded

    def _images(self, keys: Sequence[str]) -> torch.Tensor:
        """Embeddings of images by their keys, [n, D]."""
        from noisescope.datasets.images import decode

        shown = [decode(self.images.get(key)) for key in keys]
        values = self.prepare(images=shown, return_tensors="pt")["pixel_values"]
        return _pooled(self.model.get_image_features(pixel_values=values.to(self.model.device)))

    def _texts(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings of captions, cut to the length of the text tower, [n, D]."""
        full = self.model.config.model_type in FULL_LENGTH
        inputs = self.tokenizer(
            list(captions),
            padding="max_length" if full else True,
            truncation=True,
            max_length=int(self.model.config.text_config.max_position_embeddings),
            return_tensors="pt",
        ).to(self.model.device)
        names = ("input_ids", "attention_mask")
        return _pooled(self.model.get_text_features(**{n: inputs[n] for n in names if n in inputs}))


def _pooled(found: Any) -> torch.Tensor:
    """The projected embedding: transformers returns it in an output object, earlier bare."""
    pooled: torch.Tensor = getattr(found, "pooler_output", found)
    return pooled


def load_image_encoder(name: str, images: ImageStore, *, device: str = "auto") -> ImageEncoder:
    """Load an image and text encoder by directory or Hub name. Raises ModelError, UsageError."""
    from transformers import AutoImageProcessor, AutoModel

    found = find_converted(name, CONVERT.format(name))
    model, tokenizer, missing = load_reader(AutoModel, found, device)
    towers = getattr(model.config, "text_config", None), getattr(model, "vision_model", None)
    if missing or None in towers or not callable(getattr(model, "get_image_features", None)):
        fault = f"it has no {missing[0]}" if missing else "it has no image and text tower"
        raise ModelError(
            f"{name} is not an encoder of images and text: {fault}",
            hint="Give a model such as google/siglip-base-patch16-224.",
        )
    try:
        prepare = AutoImageProcessor.from_pretrained(
            found.directory, backend="pil", trust_remote_code=False
        )
    except Exception as error:  # of many kinds; all mean "does not load"
        raise ModelError(
            f"{name} has no image processor that loads: {first_line(error)}",
            hint="Copy its preprocessor_config.json beside config.json.",
        ) from error
    settings = {"embed images": VERSION, "dtype": str(model.dtype)}
    identity = ModelIdentity(name, found.revision, fingerprint(found, settings))
    return ImageEncoder(model, prepare, tokenizer, images, identity)
