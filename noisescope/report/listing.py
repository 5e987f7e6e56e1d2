"""Pack the suspicious pairs of a report for its script: texts, facts, counts of every facet.

    packed = listing(contents, images)      # JSON without "<", safe inside a script element

All pairs of a run are listed while their texts fit into BUDGET characters (pictures: their encoded
size) and there are no more than `contents.MOST`; of larger runs the most suspicious ones. Counts of
facets are always over all pairs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import DataError
from noisescope.report.contents import BINS, Contents
from noisescope.report.pictures import jpeg, numbered
from noisescope.report.template import data_uri
from noisescope.scoring.find import check_counts
from noisescope.scoring.scores import CONTESTED
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from noisescope.pairs import ImageStore

#: Characters of a text that are shown; pairs.parquet has the rest.
LONGEST = 4000
THUMBNAIL = 320
#: What ends a script element, and lone surrogates of ids, which UTF-8 cannot hold.
_UNSAFE = re.compile("[<\ud800-\udfff]")
#: Characters of texts and encoded pictures on one page.
BUDGET = 8_000_000


def listing(contents: Contents, images: ImageStore | None = None) -> str:
    """The page's data as JSON; `images` provides the pictures of image pairs."""
    manifest = contents.manifest
    modality = str(manifest.get("modality", "text"))
    sides = _Texts() if modality == "text" else _Pictures(images, of_prompts=modality == "vision")
    pairs: list[dict[str, Any]] = []
    size = 0
    for pair in contents.pairs:
        packed, length = _pair(pair, sides)
        size += length
        if size > BUDGET and pairs:
            break
        pairs.append(packed)
    found = {
        "dataset": manifest["dataset_fingerprint"],
        "name": printable(str(manifest["dataset"])),
        "total": contents.summary["pairs"],
        "bins": BINS,
        "facets": {name: _counts(rows) for name, rows in contents.facets.items()},
        "counts": check_counts(contents.summary["pairs"]),
        "pictures": sides.uris,
        "pairs": pairs,
    }
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _counts(rows: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(printable(name), count) for name, count in rows.items()]


def _pair(pair: Mapping[str, Any], sides: _Texts | _Pictures) -> tuple[dict[str, Any], int]:
    """A pair for the script, without empty entries, and its size in characters."""
    turns = pair["turns"] or []
    earlier, prompt = "", sides.prompt(pair["prompt"] if len(turns) < 2 else "")
    if len(turns) > 1:
        from noisescope.datasets.conversations import SPEAKERS

        lines = [
            sides.prompt(f"{SPEAKERS.get(t['role'], t['role'])}: {t['content']}") for t in turns
        ]
        earlier, prompt = "\n\n".join(lines[:-1]), lines[-1]
    shown = {"prompt": _text(prompt), "earlier": _text(earlier)}
    shown |= {side: sides.side(pair[side]) for side in ("chosen", "rejected")}
    pictures = sides.taken()
    size = sum(len(part.get("text", "")) for part in shown.values()) + sides.added()
    margin = pair["margin"]
    facts = {
        "id": pair["pair_id"],
        "rank": pair["rank"],
        "p": None if pair["p_wrong"] is None else round(pair["p_wrong"], 3),
        "prefers": None if margin is None else "rejected" if margin < 0 else "chosen",
        "undecided": pair["contested"] is not None and pair["contested"] >= CONTESTED,
        "row": pair["row"] + 1,  # as editors count
    }
    for name in ("annotator", "source", "issue", "known", "reviewed"):
        value = pair.get(name)
        facts[name] = printable(str(value)) if value else None
    found = {name: value for name, value in facts.items() if value not in (None, False)}
    found |= {"shown": pictures} if pictures else {}
    return found | {name: part for name, part in shown.items() if part}, size


def _text(text: str) -> dict[str, Any]:
    """What is shown of a text, and how many characters are not; empty for an empty one."""
    shown = printable(text[:LONGEST], lines=True).strip("\n")
    cut = max(0, len(text) - LONGEST)
    return ({"text": shown} | ({"cut": cut} if cut else {})) if shown else {}


@final
class _Texts:
    """Sides that are texts."""

    uris: tuple[str, ...] = ()

    def prompt(self, text: str) -> str:
        return text

    def taken(self) -> list[dict[str, Any]]:
        return []

    def side(self, text: str) -> dict[str, Any]:
        return _text(text)

    def added(self) -> int:
        return 0


@final
class _Pictures:
    """Sides that are pictures, or prompts that show some: each thumbnail once, as a data URI."""

    def __init__(self, images: ImageStore | None, *, of_prompts: bool = False) -> None:
        self.images, self.uris, self.of_prompts = images, list[str](), of_prompts
        self._keys: list[str] = []
        self._places: dict[str, int] = {}
        self._counted = 0

    def prompt(self, text: str) -> str:
        """A part of a prompt, with numbers for the pictures that it shows."""
        return numbered(text, self._keys) if self.of_prompts else text

    def taken(self) -> list[dict[str, Any]]:
        """The pictures of the prompt since the last call, each as `side` gives one."""
        keys, self._keys = self._keys, []
        return [self._picture(key) for key in keys]

    def side(self, text: str) -> dict[str, Any]:
        return _text(text) if self.of_prompts else self._picture(text)

    def _picture(self, key: str) -> dict[str, Any]:
        """The picture's place in `uris`, or the reason why there is none."""
        if self.images is None:
            return _text(f"image {key}")
        if key not in self._places:
            try:
                data = jpeg(self.images, key, THUMBNAIL, 82)
            except DataError as error:
                return _text(error.message)
            self._places[key] = len(self.uris)
            self.uris.append(data_uri("image/jpeg", data))
        return {"image": self._places[key]}

    def added(self) -> int:
        """Size of the thumbnails that were added since the last call."""
        new = self.uris[self._counted :]
        self._counted = len(self.uris)
        return sum(map(len, new))
