"""The Hugging Face Hub, streamed through `datasets`: nothing is downloaded ahead of need.

Remote code is never run. Offline (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE set) is an error at
once, which names the offline choices.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

from noisescope.datasets.readers import Row
from noisescope.errors import DataError, first_line

OFFLINE = "Give a local file or directory, or name one under [datasets] in noisescope.toml."
_TRUE = ("1", "true", "yes", "on")


def hub_source(
    name: str, config: str | None, split: str | None
) -> tuple[Callable[..., Iterator[Row]], str]:
    """Return (a function that streams the rows, full name) of a Hub dataset. Raises DataError."""
    offline = [
        variable
        for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        if os.environ.get(variable, "").strip().lower() in _TRUE
    ]
    if offline:
        raise DataError(
            f"{name} is not a path here, and the Hugging Face Hub is switched off "
            f"({offline[0]} is set)",
            hint=OFFLINE,
        )
    stream, chosen = _open(name, config, split)
    resolved = ":".join(filter(None, (f"hf://datasets/{name}", config, chosen)))
    return (lambda columns=None: _rows(stream, f"{name}:{chosen}", columns)), resolved


def _open(name: str, config: str | None, split: str | None) -> tuple[Any, str]:
    """Open the stream of one split."""
    import datasets

    _hush(datasets)
    try:
        opened = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the client raises the errors of several HTTP libraries
        raise _refused(name, error) from error
    if split is None:
        names = list(opened)
        if "train" not in names and len(names) != 1:
            raise DataError(
                f"{name}: several splits: {', '.join(names)}",
                hint=f"Name one, as in {name}:{names[0]}." if names else None,
            )
        split = "train" if "train" in names else str(names[0])
        opened = opened[split]
    return opened.decode(False), split


def _hush(datasets: Any) -> None:
    """Keep progress bars and notices of the client off the terminal."""
    datasets.disable_progress_bars()
    for logger in ("datasets", "huggingface_hub", "fsspec"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def _rows(stream: Any, source: str, columns: Collection[str] | None) -> Iterator[Row]:
    number = -1
    if columns is not None and stream.column_names:
        stream = stream.select_columns([n for n in stream.column_names if n in columns])
    try:
        for number, values in enumerate(stream):
            yield Row(source, number, dict(values))
    except Exception as error:  # a broken connection surfaces as any of several libraries' errors
        raise DataError(
            f"{source}: the stream broke after {number + 1:,} rows ({first_line(error)})",
            hint="Run the same command again, or read fewer rows with --limit.",
        ) from error


def _refused(name: str, error: Exception) -> DataError:
    kind = type(error).__name__
    if kind in ("GatedRepoError", "DatasetNotFoundError") and "gated" in str(error).lower():
        return DataError(
            f"{name}: gated on the Hugging Face Hub: its licence has to be accepted first",
            hint=f"Accept it at https://huggingface.co/datasets/{name}, then set HF_TOKEN to a "
            "token of that account (hf auth login).",
        )
    known = {
        "DatasetNotFoundError": f"{name}: neither a path here nor a dataset on the Hub",
        "ConnectionError": f"{name}: not a path here, and the Hugging Face Hub is not reachable",
    }
    message = known.get(kind, f"{name}: the Hugging Face Hub refused it")
    return DataError(f"{message} ({first_line(error)})", hint=OFFLINE)
