"""Datasets: readers turn files or Hub streams into rows, schemas turn rows into pairs.

    dataset = load("hh-rlhf", workspace=find_workspace())
    dataset = load("pairs.jsonl.gz", columns={"prompt": "question"}, limit=500)

A new schema is a few lines in `adapters/table.py`.
May import `storage` and below.
"""

from __future__ import annotations

from noisescope.datasets.adapters.cells import RawRow, RowFault
from noisescope.datasets.adapters.recognise import recognise
from noisescope.datasets.adapters.schema import Schema
from noisescope.datasets.adapters.table import ADAPTERS
from noisescope.datasets.load import load, restored
from noisescope.datasets.read_pairs import read_pairs
from noisescope.datasets.readers import Row
from noisescope.datasets.sources import Source, open_source

__all__ = [
    "ADAPTERS",
    "RawRow",
    "Row",
    "RowFault",
    "Schema",
    "Source",
    "load",
    "open_source",
    "read_pairs",
    "recognise",
    "restored",
]
