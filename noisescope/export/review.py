"""Export a queue for human review, for Argilla and Label Studio.

    review/
      argilla.jsonl                         records for rg.Dataset.records.log (docs/export.md)
      label-studio/tasks.json, config.xml   import the tasks, paste the labelling interface
      answers.csv                           a spreadsheet with an empty column `answer`
      images/                               the images, for image pairs
      key.parquet                           pair_id, labelled_better, p_wrong, value, reason

Without a review the best guess drops a pair at p >= t and has the expected cost
value = min(p (1 - t), (1 - p) t), largest at the threshold t: that is what a review saves. Most of
the queue are the pairs of highest value (`unsure`), most valuable first; the rest are the highest
p_wrong that remain (`worst`), which show how many such pairs are really wrong. Reviewers are blind:
the order of the sides is drawn by hash, and only key.parquet, which they do not see, records which
side the label prefers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.flip.plan import Float, coins
from noisescope.errors import UsageError
from noisescope.export.annotators import REVIEW, acted_on, positions_of
from noisescope.export.weights import facts_of, metadata_of
from noisescope.scoring.run_scores import REVIEWED, RunScores
from noisescope.storage.files import write_atomic
from noisescope.storage.output import write_directory

if TYPE_CHECKING:
    from noisescope.pairs import ImageStore

#: Share of the queue for the worst pairs.
WORST_SHARE = 0.2
#: Salt of the order of sides.
ORDER = 13
UNSURE, WORST, ANNOTATOR = "unsure", "worst", "annotator"
KEY, ARGILLA = "key.parquet", "argilla.jsonl"
SPREADSHEET = "answers.csv"
ANSWERS = {"a": "A is better", "b": "B is better", "equal": "equally good", "unclear": "unclear"}
GUIDELINES = (
    "Which of the two responses answers the prompt better? They are shown in random order, "
    "without their present label."
)


@final
@dataclass(frozen=True)
class Reviewed:
    """One pair of the queue; `labelled_better` is "a" or "b"."""

    pair_id: str
    prompt: str
    a: str
    b: str
    labelled_better: str
    p_wrong: float
    value: float
    reason: str


def values(p_wrong: Float, threshold: float) -> Float:
    """Compute the expected cost without review, min(p (1 - t), (1 - p) t), [N]; NaN counts 0."""
    p = np.nan_to_num(p_wrong)
    return np.minimum(p * (1 - threshold), (1 - p) * threshold)


def choose(columns: Mapping[str, Float], number: int, threshold: float) -> dict[int, str]:
    """Choose the positions of the pairs to review, most valuable first, with the reasons.

    Pairs that people have decided about are not asked again.
    """
    value, rank = values(columns["p_wrong"], threshold), columns["rank"]
    unsure = number - int(number * WORST_SHARE)
    chosen = dict.fromkeys(_open(columns, np.lexsort((rank, -value)))[:unsure].tolist(), UNSURE)
    worst = _open(columns, np.argsort(rank))[:number].tolist()
    rest = [place for place in worst if place not in chosen]
    return chosen | dict.fromkeys(rest[: number - len(chosen)], WORST)


def _open(columns: Mapping[str, Float], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the positions that nobody has decided about."""
    return places[np.isnan(columns[REVIEWED][places])]


def export_review(
    scores: RunScores,
    out: Path,
    *,
    number: int = 200,
    threshold: float = 0.5,
    images: ImageStore | None = None,
    annotators: bool = False,
) -> int:
    """Write the queue; return its number of pairs. `images` is needed for image runs.

    With `annotators` the queue is of pairs of those who stand out alone, most suspicious first.
    Raises UsageError for prompts that show pictures, a count below 1, a threshold outside (0, 1),
    an `out` that is no export, or if no annotator stands out.
    """
    if scores.modality == "vision":
        raise UsageError(
            "--format review writes prompts as text, and those of this run show pictures",
            hint="Judge them on a local page that shows them: noisescope review",
        )
    if not 0 < threshold < 1:
        raise UsageError(
            f"--threshold {threshold:g} is not between 0 and 1", hint="The default is 0.5."
        )
    if number < 1:
        raise UsageError(f"--count {number}: at least 1 pair", hint="The default is 200.")
    if annotators:
        theirs = positions_of(scores, acted_on(scores, REVIEW))
        worst = theirs[np.argsort(scores.columns["rank"][theirs], kind="stable")]
        chosen = dict.fromkeys(_open(scores.columns, worst)[:number].tolist(), ANNOTATOR)
    else:
        chosen = choose(scores.columns, number, threshold)
    queue = _queue(scores, chosen, threshold)
    facts = facts_of(scores, "review", threshold=threshold, reviewed=len(queue))

    def fill(folder: Path) -> None:
        files = _write_images(queue, folder / "images", images)
        _write_argilla(queue, folder / ARGILLA, files, out)
        _write_label_studio(queue, folder / "label-studio", files)
        _write_spreadsheet(queue, folder / SPREADSHEET, files)
        _write_key(queue, folder / KEY, facts)

    write_directory(out, facts, fill)
    return len(queue)


def _queue(scores: RunScores, chosen: Mapping[int, str], threshold: float) -> list[Reviewed]:
    """Read the chosen pairs with their texts, in the order of `chosen`."""
    found: dict[int, Reviewed] = {}
    p_wrong = scores.columns["p_wrong"]
    value = values(p_wrong, threshold)
    for batch, at in scores.pairs(["prompt", "chosen", "rejected"]):
        here = [index for index, place in enumerate(at.tolist()) if place in chosen]
        for index in here:
            pair_id, prompt, better, worse = (c[index].as_py() for c in batch.columns)
            place = int(at[index])
            swapped = coins([pair_id], 0, ORDER)[0] < 0.5
            sides = (worse, better) if swapped else (better, worse)
            found[place] = Reviewed(
                pair_id,
                prompt,
                *sides,
                labelled_better="b" if swapped else "a",
                p_wrong=float(p_wrong[place]),
                value=float(value[place]),
                reason=chosen[place],
            )
    return [found[place] for place in chosen]


def _write_images(
    queue: list[Reviewed], folder: Path, images: ImageStore | None
) -> dict[str, str] | None:
    """Write each image of the queue once; file names by content key, None for text."""
    if images is None:
        return None
    folder.mkdir()
    names: dict[str, str] = {}
    for key in dict.fromkeys(key for pair in queue for key in (pair.a, pair.b)):
        data = images.get(key)
        names[key] = f"{key}.{_ending(data)}"
        (folder / names[key]).write_bytes(data)
    return names


def _ending(data: bytes) -> str:
    """Return the file ending of an image's format."""
    starts = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}
    return next((ending for start, ending in starts.items() if data.startswith(start)), "png")


def _dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _write_argilla(
    queue: list[Reviewed], path: Path, files: Mapping[str, str] | None, out: Path
) -> None:
    """Write one record per line: id, fields and metadata by name, as Argilla's `log` accepts."""

    def shown(side: str) -> str:
        return side if files is None else str(out.resolve() / "images" / files[side])

    records = (
        {"id": p.pair_id, "prompt": p.prompt, "a": shown(p.a), "b": shown(p.b), "value": p.value}
        for p in queue
    )
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_atomic(path, "".join(lines))


def _write_label_studio(
    queue: list[Reviewed], folder: Path, files: Mapping[str, str] | None
) -> None:
    """Write tasks in Label Studio's basic JSON, and the labelling interface that shows them.

    Images are local files, which Label Studio serves from its document root.
    """

    def shown(side: str) -> str:
        return side if files is None else f"/data/local-files/?d=images/{files[side]}"

    tasks = [
        {"data": {"pair_id": p.pair_id, "prompt": p.prompt, "a": shown(p.a), "b": shown(p.b)}}
        for p in queue
    ]
    _dump(folder / "tasks.json", tasks)
    text = '<Text name="{0}" value="${0}" valueType="text"/>'
    side = text if files is None else '<Image name="{0}" value="${0}"/>'
    shown_sides = "\n    ".join(
        f'<View style="flex: 1"><Header value="{name.upper()}"/>{side.format(name)}</View>'
        for name in ("a", "b")
    )
    choices = "".join(f'<Choice value="{answer}"/>' for answer in ANSWERS.values())
    config = f"""<View>
  <Header value="Prompt"/>
  {text.format("prompt")}
  <View style="display: flex; gap: 2em">
    {shown_sides}
  </View>
  <Header value="{GUIDELINES.partition("?")[0]}?"/>
  <Choices name="better" toName="prompt" choice="single" required="true">{choices}</Choices>
</View>
"""
    write_atomic(folder / "config.xml", config)


def _write_spreadsheet(queue: list[Reviewed], path: Path, files: Mapping[str, str] | None) -> None:
    """Write a CSV file of one row per pair, with empty columns `answer` and `reviewer`."""
    import csv
    import io

    def shown(side: str) -> str:
        return side if files is None else f"images/{files[side]}"

    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerow(("pair_id", "answer", "reviewer", "prompt", "a", "b"))
    for pair in queue:
        texts = (_inert(text) for text in (pair.prompt, shown(pair.a), shown(pair.b)))
        writer.writerow((pair.pair_id, "", "", *texts))
    write_atomic(path, sink.getvalue())


def _inert(text: str) -> str:
    """Prefix a text that a spreadsheet would read as a formula with a space."""
    return f" {text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _write_key(queue: list[Reviewed], path: Path, facts: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field(name, pa.string()) for name in ("pair_id", "labelled_better")]
    fields += [pa.field(name, pa.float64()) for name in ("p_wrong", "value")]
    schema = pa.schema([*fields, pa.field("reason", pa.string())], metadata=metadata_of(facts))
    rows = [{name: getattr(pair, name) for name in schema.names} for pair in queue]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
