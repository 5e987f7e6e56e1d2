"""Datasets: any preference file or Hub dataset -> pairs, and back (`flip/`, `rewrite/`).

    dataset = load("hh-rlhf", workspace=find_workspace())
    dataset = load("pairs.jsonl.gz", format="trl", limit=500)

May import `storage` and below.
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
