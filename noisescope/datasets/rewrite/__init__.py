"""Copy a data file row by row, changing some rows and no other byte.

    rewrite(Path("train.jsonl.gz"), Path("copy/train.jsonl.gz"), change)

`change` gets a chunk of decoded rows and returns the new values of those that change, by index;
None takes the row away.
Rows left alone keep their bytes; a changed row reuses its own tokens wherever values only
trade places, so that undoing a change restores the row exactly, spacing and escapes included.
Everything streams in constant memory except a JSON array, which is held whole.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from noisescope.datasets.readers import damaged_gzip, suffix
from noisescope.datasets.rewrite.csv_rows import rewrite_csv
from noisescope.datasets.rewrite.json_array import rewrite_json
from noisescope.datasets.rewrite.json_lines import rewrite_lines
from noisescope.datasets.rewrite.tables import (
    Change,
    ChangeTable,
    SwapTexts,
    rewrite_arrow,
    rewrite_parquet,
)


def rewrite(
    source: Path,
    target: Path,
    change: Change,
    change_table: ChangeTable = lambda *_: None,
    swap_texts: SwapTexts | None = None,
) -> None:
    """Copy `source` to `target` with `change` applied. Raises DataError for a damaged file.

    `change_table` and `swap_texts` do the same for many plain rows at once, where they can.
    """
    writers: dict[str, Callable[[Path, Path, Change], None]] = {
        ".parquet": partial(rewrite_parquet, change_table=change_table),
        ".arrow": partial(rewrite_arrow, change_table=change_table),
        ".jsonl": partial(rewrite_lines, swap_texts=swap_texts),
        ".ndjson": partial(rewrite_lines, swap_texts=swap_texts),
        ".json": partial(rewrite_json, swap_texts=swap_texts),
        ".csv": rewrite_csv,
        ".tsv": rewrite_csv,
    }
    try:
        writers[suffix(source).removesuffix(".gz")](source, target, change)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_gzip(source, error) from error
