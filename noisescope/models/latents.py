"""Cache image latents and caption embeddings, the inputs of the denoiser.

    encodings = Encodings(pipeline, images)
    encodings.open(directory)            # use the cache in this directory
    encodings.keep(items, progress)      # compute the rest into parts, resumable after a kill
    latents, framings = encodings.latents(keys)
    conditioning = encodings.conditioning(prompts, framings)

Both are held in half precision, in memory as on disk: a run that finds them computes the same
bits as the run that made them. Latents are the encoder's mode, scaled.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.images import Framing, crop, decode
from noisescope.errors import DataError, ModelError
from noisescope.models import Item
from noisescope.models.denoising import Conditioning
from noisescope.models.memory import Limit, OomRetry
from noisescope.models.pipeline import Pipeline
from noisescope.pairs import ImageStore, digest
from noisescope.progress import Progress
from noisescope.storage.cache import Array, Chunk, Rows, Source, compute_missing, scan

if TYPE_CHECKING:
    from torch import Tensor


#: Bumped whenever the same pipeline would give other latents or embeddings.
ENCODINGS_VERSION = 2
#: Rows of latents, and of embeddings, kept in memory.
KEPT = 512
#: Bytes that all latents and embeddings of one directory may take on disk.
DISK_BYTES = 64 << 30
#: Share of the free disk they may take, too.
DISK_SHARE = 0.5
#: Pixels of one encoder pass.
BATCH_PIXELS = 8 * 512 * 512
#: Pixels to one unit of work.
WORK_PIXELS = 4096


@final
@dataclass(frozen=True)
class Latents:
    """Source of latents: an item's response is an image key."""

    pipeline: Pipeline
    images: ImageStore
    limit: Limit = field(default_factory=Limit)

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Work of each image, [n]."""
        return np.full(len(items), max(1, self.pipeline.image_size**2 // WORK_PIXELS), np.int64)

    def features(self, items: Sequence[Item]) -> dict[str, Array]:
        """`latent` [n, C, h, w] float16 and `framing` [n, 6] int32.

        Raises DataError naming an image that is missing or does not decode, ModelError for latents
        that are not finite.
        """
        import torch

        squares, framings = zip(*(self.square(item.response) for item in items), strict=True)
        step = max(1, BATCH_PIXELS // self.pipeline.image_size**2)
        retry: OomRetry[int] = OomRetry(
            "images", lambda row: f"image {items[row].response}", self.limit
        )

        def encoded(numbers: Sequence[int]) -> Array:
            latents = self.encode(torch.stack([squares[row] for row in numbers]))
            rows: Array = latents.half().cpu().numpy()
            return rows

        parts = [
            rows
            for start in range(0, len(squares), step)
            for _, rows in retry.run(encoded, range(len(squares))[start : start + step])
        ]
        frames = [(*frame.original, *frame.corner, *frame.target) for frame in framings]
        found = {"latent": np.concatenate(parts), "framing": np.array(frames, np.int32)}
        _check_finite(found["latent"], [f"image {item.response}" for item in items])
        return found

    def square(self, key: str) -> tuple[Tensor, Framing]:
        """An image as [3, S, S] in -1..1, and how it was cropped."""
        import torch

        try:
            square, framing = crop(decode(self.images.get(key)), self.pipeline.image_size)
        except DataError as error:
            raise DataError(f"image {key}: {error.message}", hint=error.hint) from error
        pixels = torch.from_numpy(np.asarray(square, np.float32).transpose(2, 0, 1).copy())
        return pixels / 127.5 - 1, framing

    def encode(self, squares: Tensor) -> Tensor:
        """Scaled latent modes [B, C, h, w] float32 of squares [B, 3, S, S].

        Scaled by the inverse of what the pipeline does before it decodes.
        """
        import torch

        vae = self.pipeline.pipe.vae
        video = "temperal_downsample" in vae.config  # its images are videos of one frame
        pixels = squares.to(vae.device, vae.dtype)
        with torch.inference_mode():
            coded = vae.encode(pixels[:, :, None] if video else pixels).latent_dist.mode().float()
        mode: Tensor = coded[:, :, 0] if video else coded
        factor = vae.config.get("scaling_factor") or 1.0
        if vae.config.get("latents_mean") is None or vae.config.get("latents_std") is None:
            return (mode - (vae.config.get("shift_factor") or 0.0)) * factor
        mean, std = (
            mode.new_tensor(vae.config[name]).view(1, -1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return (mode - mean) * factor / std


@final
@dataclass(frozen=True)
class Captions:
    """Source of text embeddings: an item's prompt is the caption."""

    pipeline: Pipeline

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Work of each caption, [n]."""
        return np.full(len(items), self.pipeline.family.caption_work, np.int64)

    def features(self, items: Sequence[Item]) -> dict[str, Array]:
        """The groups of `Family.encode`, [n, ...] float16; one caption at a time, so that its bits
        do not depend on its neighbours. Raises ModelError where not finite."""
        import torch

        pipe, encode = self.pipeline.pipe, self.pipeline.family.encode
        with torch.inference_mode():
            rows = [encode(pipe, item.prompt) for item in items]
        found = {name: _stacked([row[name] for row in rows]) for name in rows[0]}
        for group in found.values():
            _check_finite(group, [f"caption {item.prompt[:60]!r}" for item in items])
        return found


@final
class Encodings:
    """Latents and embeddings by key: from memory, else from disk, else computed."""

    def __init__(self, pipeline: Pipeline, images: ImageStore) -> None:
        self.pipeline, self.images = pipeline, images
        self.latents_of = Latents(pipeline, images)
        self._sources: tuple[Source, Source] = self.latents_of, Captions(pipeline)
        self.fingerprint = digest(
            pipeline.encoders, str(pipeline.image_size), str(ENCODINGS_VERSION)
        )
        self._memory: tuple[OrderedDict[str, dict[str, Tensor]], ...] = (
            OrderedDict(),
            OrderedDict(),
        )
        self._disk = (Rows([]), Rows([]))
        self._directory: Path | None = None

    def open(self, directory: Path) -> None:
        """Use the cache in `directory`/<fingerprint>; `keep` writes there."""
        self._directory = directory / self.fingerprint
        latents, captions = (Rows(scan(path)[0]) for path in self._directories())
        self._disk = (latents, captions)

    def keep(self, items: Iterable[Item], progress: Progress) -> None:
        """Compute the images and captions of `items`, and the empty caption, into parts on disk.

        Rows beyond the room on the disk (DISK_BYTES, DISK_SHARE) are computed when needed;
        `progress` gets a note on them and on damaged parts. Raises RunError if the directory
        cannot be written, DataError or ModelError as the sources do. Does nothing before `open`.
        """
        if self._directory is None:
            return
        kept: list[list[Chunk]] = []
        for source, path, disk, distinct in zip(
            self._sources, self._directories(), self._disk, self._distinct(list(items)), strict=True
        ):
            absent = [item for item in distinct if item.key not in disk]
            fitting = _fitting(source, absent, path)
            if left := len(absent) - len(fitting):
                progress(0, 0, f"no room on disk for {left:,} {path.name}: computed when needed")
            kept.append(compute_missing(source, fitting, path, progress, path.name))
        self._disk = (Rows(kept[0]), Rows(kept[1]))

    def latents(self, keys: Sequence[str]) -> tuple[Tensor, list[Framing]]:
        """Scaled latent modes [B, C, h, w] float32 of images by key, and how each was cropped."""
        import torch

        rows = self._rows(0, [_image(key) for key in keys])
        frames = [row["framing"].tolist() for row in rows]
        framings = [Framing((a, b), (c, d), (e, f)) for a, b, c, d, e, f in frames]
        return torch.stack([row["latent"] for row in rows]).float(), framings

    def conditioning(self, prompts: Sequence[str], framings: Sequence[Framing]) -> Conditioning:
        """Conditioning of each row: text [B, L, D], and what else the denoiser takes."""
        import torch

        rows = self._rows(1, [_caption(prompt) for prompt in prompts])
        kind = self.pipeline.model.dtype
        groups = {name: torch.stack([row[name] for row in rows]).to(kind) for name in rows[0]}
        if "mask" in groups:  # no longer than the longest caption
            longest = int(groups["mask"].sum(1).max())
            groups = {name: group[:, :longest] for name, group in groups.items()}
        text = groups.pop("text")
        if not self.pipeline.is_xl:
            return Conditioning(text, groups)
        ids = [(*frame.original, *frame.corner, *frame.target) for frame in framings]
        time_ids = torch.tensor(ids, dtype=kind, device=text.device)
        return Conditioning(text, {"text_embeds": groups["pooled"], "time_ids": time_ids})

    def _rows(self, which: int, items: Sequence[Item]) -> list[dict[str, Tensor]]:
        """Rows of items from memory, disk or the source; the last KEPT stay in memory."""
        import torch

        memory, device = self._memory[which], self.pipeline.model.device
        found = {item.key: memory[item.key] for item in items if item.key in memory}
        absent = []
        for item in {item.key: item for item in items if item.key not in found}.values():
            row = self._disk[which].get(item.key)
            if row is None:
                absent.append(item)
            else:
                found[item.key] = {
                    name: torch.from_numpy(value).to(device) for name, value in row.items()
                }
        if absent:
            groups = self._sources[which].features(absent)
            tensors = {name: torch.from_numpy(value).to(device) for name, value in groups.items()}
            for row_number, item in enumerate(absent):
                found[item.key] = {name: value[row_number] for name, value in tensors.items()}
        for item in items:
            memory[item.key] = found[item.key]
            memory.move_to_end(item.key)
        while len(memory) > KEPT:
            memory.popitem(last=False)
        return [found[item.key] for item in items]

    def _distinct(self, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """Images (their references, too) and captions of items, once each."""
        keys = dict.fromkeys(item.response for item in items)
        for item in items:
            keys |= dict.fromkeys(self.images.references.get(item.key, ()))
        prompts = dict.fromkeys(item.prompt for item in items) | {"": None}
        return [_image(key) for key in keys], [_caption(prompt) for prompt in prompts]

    def _directories(self) -> tuple[Path, Path]:
        """Directories of latents and embeddings."""
        assert self._directory is not None
        return self._directory / "latents", self._directory / "captions"


def _fitting(source: Source, items: list[Item], directory: Path) -> list[Item]:
    """As many of the items as the disk has room for, in order of their keys."""
    if not items:
        return []
    root = directory.parent.parent
    anchor = next(folder for folder in (root, *root.parents) if folder.is_dir())
    used = sum(file.stat().st_size for file in root.rglob("*.safetensors"))
    room = min(DISK_BYTES - used, int(shutil.disk_usage(anchor).free * DISK_SHARE))
    row = sum(values.nbytes for values in source.features(items[:1]).values())
    return sorted(items, key=lambda item: item.key)[: max(0, room // row)]


def _image(key: str) -> Item:
    """An image as an item: ordered by its key."""
    return Item(key, key, None, key)


def _caption(prompt: str) -> Item:
    """A caption as an item."""
    return Item(digest(prompt), prompt, None, "")


def _stacked(rows: Sequence[Tensor]) -> Array:
    """Tensors [...] as one array [n, ...] in half precision."""
    import torch

    stacked: Array = torch.stack(list(rows)).half().cpu().numpy()
    return stacked


def _check_finite(rows: Array, names: Sequence[str]) -> None:
    """Raise ModelError naming the first row that does not fit half precision."""
    bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    if len(bad):
        raise ModelError(
            f"{names[bad[0]]} and {len(bad) - 1} more of {len(rows)} encode to values that are "
            "not finite",
            hint="Try --dtype float32, or another pipeline.",
        )
