"""Write sample_data/prompts: prompts of the samples' worlds that the samples do not hold.

    python sample_data/make_prompts.py

For `noisescope evaluate --prompts`: 300 conversations as messages, 300 captions one a line.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import shapes
from make_hh_rlhf import transcript, transcripts

HERE = Path(__file__).resolve().parent
SEED = 99
COUNT = 300


def conversations() -> list[str]:
    """JSON lines with `prompt` as messages; none begins a transcript of the sample."""
    with gzip.open(HERE / "hh-rlhf" / "train.jsonl.gz", "rt", encoding="utf-8") as stream:
        known = {json.loads(line)["chosen"].rpartition("\n\nAssistant:")[0] for line in stream}
    found: dict[str, str] = {}
    for turns, _, _ in transcripts(SEED, 4 * COUNT):
        lead = transcript(tuple(turns), "").rpartition("\n\nAssistant:")[0]
        if lead not in known and len(found) < COUNT:
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
            found[lead] = json.dumps({"prompt": messages})
    return list(found.values())


def captions() -> list[str]:
    """Captions that the sample pictures do not have."""
    table = pq.read_table(HERE / "pick-a-pic" / "train-00000-of-00001.parquet", columns=["caption"])
    known = set(table["caption"].to_pylist())
    rng = np.random.default_rng(SEED)
    found: dict[str, None] = {}
    while len(found) < COUNT:
        caption = shapes.caption(shapes.draw_scene(rng))
        if caption not in known:
            found[caption] = None
    return list(found)


def main() -> None:
    """Write both files."""
    folder = HERE / "prompts"
    folder.mkdir(exist_ok=True)
    (folder / "hh-rlhf.jsonl").write_text("\n".join(conversations()) + "\n", "utf-8")
    (folder / "pick-a-pic.txt").write_text("\n".join(captions()) + "\n", "utf-8")


if __name__ == "__main__":
    main()
