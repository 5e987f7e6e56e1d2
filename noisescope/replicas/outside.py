"""Keep evidence from outside, and read it: features in the cache, numbers in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.models import Item
from noisescope.models.features import cached_features
from noisescope.progress import Reporter
from noisescope.replicas.numbers import numbers_fingerprint
from noisescope.replicas.sources import Opened
from noisescope.storage.cache import compute_missing
from noisescope.storage.files import write_atomic
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float32]
#: Folder of a run directory with the numbers of its sources of pairs.
FOLDER = "evidence"
#: Columns of a judge's numbers: of pairs drawn at random, and of pairs selected by their label.
DRAWN, SELECTED = "log_odds", "log_odds_selected"


def fill(
    opened: Sequence[Opened], run: Run, cache: Path, table: pa.Table, reporter: Reporter
) -> None:
    """Compute features that are not cached, and write numbers of pairs into the run directory."""
    from noisescope.models.items import distinct_items

    for one in opened:
        if one.remark:
            reporter.note(one.remark)
        if one.model is None:
            _write_numbers(_path(run, one.fingerprint), table, one.numbers)
            continue
        items, made_by = distinct_items(table)[0], one.fingerprint
        with reporter.stage(f"{one.source}: {len(items):,} distinct responses") as progress:
            compute_missing(one.model, items, cache / made_by, progress, "feature", made_by)


def _path(run: Run, fingerprint: str) -> Path:
    return run.directory / FOLDER / f"{fingerprint}.parquet"


def _write_numbers(path: Path, table: pa.Table, numbers: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"pair_id": table.column("pair_id")} | {
        name: pa.array(values, pa.float64()) for name, values in numbers.items()
    }
    whole = pa.table(columns)
    write_atomic(path, lambda to: pq.write_table(whole, to, compression="zstd"))


@final
@dataclass(frozen=True)
class Outside:
    """Groups of all sources: of responses [R, D_g], of pairs [N, E_g], and whose they are.

    `selected` has the log odds [N] of judges that were asked about pairs because of their label,
    and which pairs [N] were drawn at random: of these alone are their `numbers`.
    """

    features: Mapping[str, Float] = field(default_factory=dict)
    numbers: Mapping[str, Float] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    selected: Mapping[str, tuple[NDArray[np.float64], NDArray[np.bool_]]] = field(
        default_factory=dict
    )

    @property
    def fitted(self) -> dict[str, Float]:
        """The numbers that the replicas are fitted to (see `replicas.selected` for the others)."""
        return {name: x for name, x in self.numbers.items() if name not in self.selected}

    def reversed(self, flipped: NDArray[np.bool_]) -> Outside:
        """The numbers of pairs under labels of which some are flipped, [N]."""
        sign = np.where(flipped, np.float32(-1), np.float32(1))[:, None]
        numbers = {name: values * sign for name, values in self.numbers.items()}
        selected = {name: (x * sign[:, 0], drawn) for name, (x, drawn) in self.selected.items()}
        return replace(self, numbers=numbers, selected=selected)


def read_outside(
    run: Run, cache: Path, evidence: Mapping[str, Any], table: pa.Table, items: Sequence[Item]
) -> Outside:
    """Features and numbers of a plan's sources. Raises RunError if any are missing or damaged."""
    features: dict[str, Float] = {}
    numbers: dict[str, Float] = {}
    groups: dict[str, tuple[str, ...]] = {}
    selected: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]] = {}
    for one in evidence.get("sources", ()):
        name, made_by = str(one["source"]), str(one["fingerprint"])
        if one["level"] == "response":
            found = cached_features(items, cache, made_by)
            own = {f"{name} {group}": values for group, values in found.items()}
            features |= own
        else:
            read = _read_numbers(_path(run, made_by), made_by, table)
            if one.get("asked", {}).get("selected"):
                drawn = np.isfinite(read[DRAWN])
                selected[name] = np.where(drawn, read[DRAWN], read[SELECTED]), drawn
            own = {name: _stacked({DRAWN: read[DRAWN]} if "asked" in one else read)}
            numbers |= own
        groups[name] = tuple(own)
    return Outside(features, numbers, groups, selected)


def _stacked(numbers: Mapping[str, NDArray[np.float64]]) -> Float:
    """Columns [N] side by side, 0 for a pair without a number, [N, E]."""
    whole = np.stack(list(numbers.values()), axis=1)
    return np.nan_to_num(whole, nan=0.0).astype(np.float32)


def _read_numbers(path: Path, made_by: str, table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Columns of a source of pairs, NaN for a pair without a number. Raises RunError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = table.column("pair_id").to_pylist()
    try:
        found = pq.read_table(path)
        numbers = {
            name: np.array(found.column(name).to_pylist(), np.float64)
            for name in found.column_names
            if name != "pair_id"
        }
        whole = numbers_fingerprint(found.column("pair_id").to_pylist(), numbers) == made_by
        if not whole or found.column("pair_id").to_pylist() != ids:
            raise ValueError(path)
    except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
        raise RunError(
            f"{path} is missing or damaged",
            hint="Run the command that made the run again; it writes the file.",
        ) from error
    return numbers
