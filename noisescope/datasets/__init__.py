"""Datasets: readers turn files or Hub streams into rows, adapters turn rows into pairs.

    dataset = load("hh-rlhf", workspace=find_workspace())
    dataset = load("pairs.jsonl.gz", format="trl", limit=500)

A new format is one file with a frozen adapter and one line in `ADAPTERS`.
"""

from __future__ import annotations

from noisescope.datasets.adapter import Adapter, RawRow, RowFault
from noisescope.datasets.loading import load, read_pairs
from noisescope.datasets.readers import Row
from noisescope.datasets.recognition import ADAPTERS, recognise
from noisescope.datasets.sources import Source, open_source

__all__ = [
    "ADAPTERS",
    "Adapter",
    "RawRow",
    "Row",
    "RowFault",
    "Source",
    "load",
    "open_source",
    "read_pairs",
    "recognise",
]
