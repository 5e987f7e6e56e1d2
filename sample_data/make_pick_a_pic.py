"""Write sample_data/pick-a-pic: a small preference dataset in the exact Pick-a-Pic v2 schema.

    python sample_data/make_pick_a_pic.py

Drawn pictures (32 px JPEG) of captioned coloured shapes. For each caption several pictures
compete: clean ones, degraded ones, and clean ones of something else; as on pickapic.io the
same picture stands in several pairs. Simulated users of unequal care label the pairs, about
one label in five against the truth; `truth.parquet` says which. The same seed gives the same
pairs; JPEG bytes are those of the installed Pillow's encoder.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import uuid
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapes
from PIL import Image

from noisescope.pairs import content_id

HERE = Path(__file__).resolve().parent
SEED = 20250321
CAPTIONS = 250
PAIRS_PER_CAPTION = 4
TIE_SHARE = 0.03
#: Users and the share of their labels that are wrong: most are careful, some are not.
CARE = {4001 + n: eta for n, eta in enumerate([0.08] * 14 + [0.22] * 10 + [0.45] * 6)}
QUALITY = 90

SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()),
        ("best_image_uid", pa.string()),
        ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")),
        ("has_label", pa.bool_()),
        ("image_0_uid", pa.string()),
        ("image_0_url", pa.string()),
        ("image_1_uid", pa.string()),
        ("image_1_url", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("ranking_id", pa.int64()),
        ("user_id", pa.int64()),
        ("num_example_per_prompt", pa.int64()),
        ("__index_level_0__", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Picture:
    """One competing image: its bytes, how well it fits (higher is better), how it was made."""

    jpg: bytes
    quality: float
    kind: str

    @property
    def uid(self) -> str:
        """A stable identifier in Pick-a-Pic's form."""
        return str(uuid.UUID(bytes=hashlib.sha256(self.jpg).digest()[:16]))

    @property
    def key(self) -> str:
        """The image's content key in noisescope."""
        return hashlib.sha256(self.jpg).hexdigest()[:20]


def jpeg(image: Image.Image) -> bytes:
    """Encoded bytes."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return stream.getvalue()


def pictures(scene: shapes.Scene, rng: np.random.Generator) -> list[Picture]:
    """Five competing pictures of one caption: two clean, the rest degraded or of something else."""
    clean = [shapes.render(scene, rng) for _ in range(2)]
    out = [Picture(jpeg(image), 1.0, "clean") for image in clean]
    for _ in range(3):
        if rng.random() < 0.4:
            wrong = shapes.render(shapes.mistake(scene, rng), rng)
            out.append(Picture(jpeg(wrong), 0.0, "other"))
        else:
            kind, severity = str(rng.choice(shapes.DEGRADATIONS)), rng.random()
            worse = shapes.degrade(shapes.render(scene, rng), kind, severity, rng)
            out.append(Picture(jpeg(worse), 0.5 - 0.3 * severity, kind))
    return out


def matches(rng: np.random.Generator) -> list[tuple[str, Picture, Picture]]:
    """(caption, one picture, another) for every pair, sides in random order."""
    out: list[tuple[str, Picture, Picture]] = []
    seen: set[str] = set()
    while len(seen) < CAPTIONS:
        scene = shapes.draw_scene(rng)
        text = shapes.caption(scene)
        if text in seen:
            continue
        seen.add(text)
        field = pictures(scene, rng)
        decided = [(a, b) for a, b in combinations(field, 2) if abs(a.quality - b.quality) > 0.3]
        for index in rng.permutation(len(decided))[:PAIRS_PER_CAPTION]:
            first, second = decided[index]
            swap = rng.random() < 0.5
            out.append((text, second, first) if swap else (text, first, second))
        if rng.random() < TIE_SHARE * PAIRS_PER_CAPTION:
            out.append((text, field[0], field[1]))
    return out


def rows() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Dataset rows and truth rows (decided pairs only), in the same order."""
    rng = np.random.default_rng(SEED)
    start = datetime.datetime(2023, 4, 1)
    table: list[dict[str, object]] = []
    truth: list[dict[str, object]] = []
    for number, (text, a, b) in enumerate(matches(rng)):
        user = int(rng.choice(list(CARE)))
        wrong = bool(rng.random() < CARE[user])
        tie = a.quality == b.quality
        first = 0.5 if tie else float((a.quality > b.quality) != wrong)
        best = "tie" if tie else (a.uid if first == 1.0 else b.uid)
        table.append(
            {
                "are_different": True,
                "best_image_uid": best,
                "caption": text,
                "created_at": start + datetime.timedelta(seconds=41 * number),
                "has_label": True,
                "image_0_uid": a.uid,
                "image_0_url": f"https://images.invalid/{a.uid}.jpg",
                "image_1_uid": b.uid,
                "image_1_url": f"https://images.invalid/{b.uid}.jpg",
                "jpg_0": a.jpg,
                "jpg_1": b.jpg,
                "label_0": first,
                "label_1": 1.0 - first,
                "model_0": "shapes",
                "model_1": "shapes",
                "ranking_id": 100000 + number,
                "user_id": user,
                "num_example_per_prompt": PAIRS_PER_CAPTION,
                "__index_level_0__": number,
            }
        )
        if not tie:
            pair = content_id(text, a.key, b.key)
            worse = min(a, b, key=lambda picture: picture.quality).kind
            truth.append({"pair_id": pair, "row": number, "mislabelled": wrong, "worse": worse})
    return table, truth


def main() -> None:
    """Write the dataset and its truth."""
    table, truth = rows()
    folder = HERE / "pick-a-pic"
    folder.mkdir(exist_ok=True)
    name = folder / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(table, SCHEMA), name, compression="zstd")
    pq.write_table(pa.Table.from_pylist(truth), folder / "truth.parquet", compression="zstd")
    share = float(np.mean([row["mislabelled"] for row in truth]))
    size = name.stat().st_size / 1e6
    print(f"{len(table):,} pairs, {len(truth):,} decided, {share:.1%} wrong, {size:.1f} MB")


if __name__ == "__main__":
    main()
