"""A diffusers text-to-image pipeline of a known family as a policy: features of images.

    policy = DiffusionPolicy.load("stabilityai/stable-diffusion-xl-base-1.0", dataset.images)
    policy.features(items)  # group -> [n, D_g]

Each distinct (prompt, image) is noised by a few (t, eps) draws that the whole dataset shares and
denoised with its caption and with the empty one. Latents and text embeddings come from
`encodings.py`, once per distinct image and prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.images import Framing
from noisescope.models import Item, ModelIdentity
from noisescope.models.denoiser import image_tokens
from noisescope.models.denoising import Conditioning, DrawConfig, generator
from noisescope.models.image_features import (
    NEAR,
    References,
    caption_evidence,
    compared_blocks,
    error_statistics,
    late_blocks,
    pooled,
)
from noisescope.models.latents import Encodings
from noisescope.models.memory import Limit, OomRetry
from noisescope.models.pipeline import Pipeline, load_pipeline
from noisescope.models.pipeline_files import find_pipeline
from noisescope.pairs import ImageStore, Modality, digest
from noisescope.progress import advance

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Float = NDArray[np.float32]
Int = NDArray[np.int64]

#: Bumped whenever the same pipeline would give other features.
FEATURES_VERSION = 3
#: Latent positions denoised at once, by device type.
BATCH_POSITIONS = {"cpu": 4096, "cuda": 65536}
#: Latent positions to one unit of work (`sizes`).
WORK_POSITIONS = 64


@final
class DiffusionPolicy:
    """A loaded pipeline, the images it judges and its identity; see `load`."""

    modality: Modality = "image"

    def __init__(
        self,
        pipeline: Pipeline,
        images: ImageStore,
        identity: ModelIdentity,
        *,
        draws: DrawConfig | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.images = images
        self.identity = identity
        self.draws = draws or DrawConfig()
        self.encodings = Encodings(pipeline, images)
        self.limit = Limit()

    @classmethod
    def load(
        cls,
        name: str,
        images: ImageStore,
        *,
        image_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        draws: DrawConfig | None = None,
    ) -> Self:
        """Load a pipeline directory or Hub name.

        `image_size` is the pipeline's own unless given. Raises ModelError for a pipeline that
        cannot be used, UsageError for a setting that cannot be.
        """
        import torch

        from noisescope.models.device import pick_device, pick_dtype

        where = pick_device(device)
        kind = pick_dtype(dtype, where)
        found = find_pipeline(name, prefer_half=kind is not torch.float32)
        pipeline = load_pipeline(found, where, kind, image_size)
        chosen = draws or DrawConfig()
        settings: dict[str, object] = {
            "version": FEATURES_VERSION,
            "image_size": pipeline.image_size,
            "draws": asdict(chosen),
            "dtype": str(kind),
            "references": digest(*(f"{k} {v}" for k, v in sorted(images.references.items()))),
        }
        identity = ModelIdentity(name, found.revision, found.fingerprint(settings))
        return cls(pipeline, images, identity, draws=chosen)

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""
        import torch

        return torch.device(self.pipeline.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        import torch

        kind: object = self.pipeline.model.dtype
        return kind if isinstance(kind, torch.dtype) else torch.float32

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of an image's latent."""
        return self.pipeline.latent_shape

    def sizes(self, items: Sequence[Item]) -> Int:
        """Work of each item, [n]: denoiser calls times latent positions / 64."""
        _, height, width = self.latent_shape
        calls = self.draws.calls + (len(self.draws.references) if self.images.references else 0)
        work = max(1, calls * height * width // WORK_POSITIONS)
        return np.full(len(items), work, np.int64)

    def open_encodings(self, directory: Path) -> Encodings:
        """The cache of latents and caption embeddings, kept in `directory`."""
        self.encodings.open(directory)
        return self.encodings

    def features(self, items: Sequence[Item]) -> dict[str, Float]:
        """Feature groups in the order of `items`: group -> [n, D_g] float32.

        A batch that does not fit into memory is halved. Raises DataError naming an image that is
        missing or does not decode, ModelError naming one that does not fit alone.
        """
        import torch

        _, height, width = self.latent_shape
        budget = BATCH_POSITIONS.get(self.device.type, BATCH_POSITIONS["cpu"])
        batch = max(1, budget // (height * width))
        retry: OomRetry[Item] = OomRetry("images", self._name, self.limit)
        rows: dict[str, list[Float]] = {}
        with torch.inference_mode():
            for start in range(0, len(items), batch):
                for _, found in retry.run(self._measured, items[start : start + batch]):
                    for name, value in found.items():
                        rows.setdefault(name, []).append(value)
                advance(min(start + batch, len(items)) / len(items))
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def latents(self, keys: Sequence[str]) -> tuple[Tensor, list[Framing]]:
        """Scaled latent modes [B, C, h, w] of images by key, and how each was cropped."""
        return self.encodings.latents(keys)

    def conditioning(self, prompts: Sequence[str], framings: Sequence[Framing]) -> Conditioning:
        """Conditioning of each row: text [B, L, D], for SDXL pooled text and size ids."""
        return self.encodings.conditioning(prompts, framings)

    def shared_draw(self, draw: int) -> tuple[int, Tensor]:
        """Timestep and noise [C, h, w] of one of the dataset's shared draws."""
        import torch

        source = generator(self.draws.seed, "features", draw)
        eps = torch.from_numpy(source.standard_normal(self.latent_shape, np.float32))
        return self.pipeline.schedule.at(self.draws.times[draw]), eps.to(self.device)

    def _name(self, item: Item) -> str:
        """An item for an error message."""
        size = self.pipeline.image_size
        return f"image {item.response} of {item.prompt[:40]!r} at --image-size {size}"

    def _measured(self, items: Sequence[Item]) -> dict[str, Float]:
        """Feature groups of one batch, off the device."""
        groups = self._measure(items)
        return {name: value.float().cpu().numpy() for name, value in groups.items()}

    def _measure(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Feature groups of one batch."""
        import torch

        latents, framings = self.latents([item.response for item in items])
        captioned = self.conditioning([item.prompt for item in items], framings)
        empty = self.conditioning([""] * len(items), framings)
        references = self.images.references and References.of(items, self.images.references)
        statistics, evidence, activations, distances = [], [], [], []
        for draw in range(len(self.draws.times)):
            compared = bool(references) and draw in self.draws.references
            blocks = compared_blocks(self.pipeline.denoiser) if compared else []
            with (
                self._recorded(late_blocks(self.pipeline.denoiser)) as late,
                self._recorded(blocks) as states,
            ):
                guess, target = self._predict(latents, captioned, draw)
            statistics.append(error_statistics(guess, target))
            if draw in self.draws.activations:
                activations.append(pooled(late))
            if references and compared:
                distances.append(
                    references.compare(states, self._reference_states(references, draw))
                )
            if draw in self.draws.empty:
                plain, _ = self._predict(latents, empty, draw)
                evidence.append(caption_evidence(guess, plain, target))
        if references:
            distances.append(references.compare([latents], [self.latents(references.images)[0]]))
        groups = {
            "error_statistics": statistics,
            "caption_pmi": evidence,
            "activations": activations,
            "reference_distances": distances,
            "reference_logs": [(distance + NEAR).log() for distance in distances],
        }
        return {name: torch.cat(parts, dim=1) for name, parts in groups.items() if parts}

    def _predict(
        self, latents: Tensor, conditioning: Conditioning, draw: int
    ) -> tuple[Tensor, Tensor]:
        """(prediction, target) of latents [B, C, h, w] under one of the shared draws."""
        import torch

        step, noise = self.shared_draw(draw)
        t = torch.full((len(latents),), step, dtype=torch.long, device=self.device)
        eps = noise.expand_as(latents)
        return self.pipeline.denoiser.predict(latents, conditioning, t, eps)

    def _reference_states(self, references: References, draw: int) -> list[Tensor]:
        """Feature maps of the distinct references under one of the shared draws."""
        latents, framings = self.latents(references.images)
        conditioning = self.conditioning(references.prompts, framings)
        with self._recorded(compared_blocks(self.pipeline.denoiser)) as states:
            self._predict(latents, conditioning, draw)
        return states

    @contextmanager
    def _recorded(self, blocks: Sequence[Any]) -> Iterator[list[Tensor]]:
        """Collect the outputs of blocks while they run, as maps [B, D, h, w]."""
        states: list[Tensor] = []
        grid = self.pipeline.grid

        def keep(module: object, arguments: object, output: Any) -> None:
            states.append(image_tokens(output, grid))

        hooks = [block.register_forward_hook(keep) for block in blocks]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()
