"""From a run's margins to scores.parquet and its summary. No torch; seconds for a million pairs.

Usage: `summary = score_run(Path("runs/hh-rlhf-1a2b3c4d"), ScoreConfig())`. Verdicts are cheap and
never touch the evidence: call it again with another rho or k1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.detectors import RHO, confidence, mean_over, stability, u_released
from noisescope.errors import RunError, UsageError
from noisescope.evidence import RunMargins, read_margins
from noisescope.flip_rate import FlipRate, fit_flip_rate
from noisescope.run import Run
from noisescope.storage import write_atomic
from noisescope.summary import Summary, summarise
from noisescope.weights import WeightConfig, adaptive_weights

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float64]

#: Columns of scores.parquet after pair_id, in order; all float64 but rank.
COLUMNS = (
    "confidence",
    "stability",
    "u",
    "u_released",
    "margin",
    "p_flip",
    "p_mislabelled",
    "contested",
    "W",
    "gamma",
)
#: Pairs judged at once: bounds the float64 temporaries.
BLOCK = 1 << 18
SUSPECTS = 10
#: What a reader must know of adapters that nobody said were kept from these pairs.
IN_SAMPLE = (
    "These adapters may have trained on the very pairs they judge. The margins are in-sample: "
    "held-out accuracy, flip rate and expected AUROC are too good, and learned errors look right. "
    "Score with --held-out if they never saw these pairs."
)


@final
@dataclass(frozen=True)
class ScoreConfig:
    """Constants of Eq. 11 (rho: 1 for text, 15 for images) and Eq. 14-15 (k1, k2, c2).

    `rho` None stands for the modality's; see `weights` for k2 and c2.
    `released` takes W and Gamma from `u_released` instead of u.
    """

    rho: float | None = None
    k1: float = 10.0
    k2: float = -1.0
    c2: float = 0.0
    released: bool = False

    def __post_init__(self) -> None:
        if self.rho is not None and not (np.isfinite(self.rho) and self.rho > 0):
            raise UsageError(
                f"--rho must be above 0, not {self.rho:g}",
                hint="The paper has 1 for text and 15 for images.",
            )
        _ = self.weights

    @property
    def weights(self) -> WeightConfig:
        """The constants of W and Gamma. Raises UsageError where they make no sense."""
        return WeightConfig(self.k1, self.k2, self.c2)


def score_run(directory: Path, config: ScoreConfig | None = None) -> Summary:
    """Judge every pair of the run in `directory`, write scores.parquet, return the summary.

    Needs plan.json (beta), pairs.parquet and margins/part-*.parquet. Raises RunError where they
    are missing, damaged or incomplete, EvidenceError with fewer than ten pairs.
    """
    import duckdb
    import pyarrow as pa

    config, run = config or ScoreConfig(), Run(directory)
    beta, modality = _plan_facts(run)
    rho = RHO[modality] if config.rho is None else config.rho
    try:
        found = read_margins(directory)
        averages = read_averages(run)
    except (duckdb.Error, pa.ArrowException) as error:
        raise RunError(
            f"the evidence in {directory} cannot be read: {str(error).splitlines()[0]}",
            hint="Remove that directory and type the command again: features stay cached.",
        ) from error
    _check_replicas(run, len(found.replicas))
    columns, rate = judge(found, beta=beta, rho=rho, config=config, averages=averages)
    order = np.argsort(columns["margin"], kind="stable")
    write_atomic(run.scores_path, lambda path: _write(path, found.pair_ids, columns, order))
    summary = summarise(run, len(found.replicas), columns, rate, order[:SUSPECTS])
    return replace(summary, notes=(IN_SAMPLE, *summary.notes)) if found.in_sample else summary


def read_averages(run: Run) -> RunMargins | None:
    """Margins of the replicas' averaged copies (`--ema`), None where the run has none."""
    if not any(run.averages_directory.glob("part-*.parquet")):
        return None
    return read_margins(run.directory, folder=run.averages_directory.name)


def _check_replicas(run: Run, found: int) -> None:
    """Raise RunError where margins of some of the planned replicas are gone."""
    planned = run.plan()["evidence"].get("replicas")
    if isinstance(planned, int) and found != planned:
        raise RunError(
            f"{run.margins_directory} holds margins of {found} replicas, planned were {planned}",
            hint=f"Remove {run.directory} and type the command again: features stay cached.",
        )


def _plan_facts(run: Run) -> tuple[float, str]:
    """beta and modality of a run's evidence, from its plan."""
    plan = run.plan()
    evidence = plan.get("evidence")
    beta = evidence.get("beta") if isinstance(evidence, Mapping) else None
    if not isinstance(beta, int | float) or not beta > 0:
        raise RunError(
            f"{run.plan_path} states no beta: margins cannot be read as beta * l",
            hint="Remove the run and make it again: noisescope score DATASET",
        )
    modality = plan.get("modality", "text")
    return float(beta), modality if modality in RHO else "text"


def judge(
    found: RunMargins,
    *,
    beta: float,
    rho: float,
    config: ScoreConfig,
    averages: RunMargins | None = None,
) -> tuple[dict[str, Float], FlipRate]:
    """All of `COLUMNS` [N] and the fitted flip rate, in blocks of pairs.

    `averages` are two averaged copies a replica, of which `u_released` is then made.
    """
    count = len(found.pair_ids)
    columns = {name: np.empty(count) for name in COLUMNS}
    scale = _replica_scale(found) / beta
    scales = scale, scale if averages is None else _replica_scale(averages) / beta
    for block, margins, held in _blocks(found):
        logratios = margins / beta
        columns["margin"][block] = mean_over(np.where(held, margins, np.nan))
        columns["confidence"][block] = confidence(logratios, rho)
        columns["stability"][block] = stability(logratios)
        if averages is None:
            columns["u_released"][block] = u_released(logratios, rho, scale)
        else:
            copies = averages.margins[:, -1, block].astype(np.float64) / beta
            columns["u_released"][block] = u_of_trios(logratios, copies, held, rho, scales)
    columns["u"] = columns["stability"] * columns["confidence"]
    rate = fit_flip_rate(columns["margin"])
    for block, margins, held in _blocks(found):
        columns["contested"][block] = rate.contested(np.where(held, margins, np.nan))
    columns["p_flip"] = rate.p_flip(columns["margin"])
    columns["p_mislabelled"] = rate.p_mislabelled(columns["margin"])
    columns["W"], columns["gamma"] = adaptive_weights(
        columns["u_released" if config.released else "u"],
        config.weights,
    )
    return columns, rate


def u_of_trios(
    live: Float,
    copies: Float,
    counted: NDArray[np.bool_],
    rho: float,
    scales: tuple[Float, Float],
) -> Float:
    """`u_released` of each run and its two averaged copies, mean over the runs that count.

    live [M, N], copies [2M, N] (rows 2m and 2m + 1 are run m's), counted [M, N], scales of both
    ([M, 1], [2M, 1]) -> u [N] in [0, 1]: the released trio is one run, live and two averages.
    """
    values = []
    for m in range(len(live)):
        both = slice(2 * m, 2 * m + 2)
        trio = np.concatenate([live[m : m + 1], copies[both]])
        scale = np.concatenate([scales[0][m : m + 1], scales[1][both]])
        values.append(u_released(trio, rho, scale))
    return mean_over(np.where(counted, np.stack(values), np.nan))


def _blocks(found: RunMargins) -> Iterator[tuple[slice, Float, NDArray[np.bool_]]]:
    """(pairs, last margins [M, n] float64, which of them count [M, n]) of each block of pairs."""
    for start in range(0, len(found.pair_ids), BLOCK):
        block = slice(start, start + BLOCK)
        yield block, found.margins[:, -1, block].astype(np.float64), found.counted[:, block]


def _replica_scale(found: RunMargins) -> Float:
    """Root mean square margin of each replica over the dataset, [M, 1]; 1 for all-zero ones."""
    squares = np.zeros((len(found.replicas), 1))
    for _, margins, _ in _blocks(found):
        squares += np.nansum(np.square(margins), axis=1, keepdims=True)
    judged = np.isfinite(found.margins[:, -1]).sum(axis=1, keepdims=True)
    scale = np.sqrt(squares / np.maximum(judged, 1))
    return np.where(scale > 0, scale, 1.0)


def _schema() -> pa.Schema:
    import pyarrow as pa

    numbers = [pa.field(name, pa.float64()) for name in COLUMNS]
    return pa.schema(
        [
            pa.field("pair_id", pa.string(), nullable=False),
            *numbers,
            pa.field("rank", pa.int64(), nullable=False),
        ]
    )


def _write(
    path: Path, ids: pa.ChunkedArray, columns: Mapping[str, Float], order: NDArray[np.int64]
) -> None:
    """Rows in rank order (1 = most suspicious), a row group a block; undefined numbers are null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ids.combine_chunks()
    with pq.ParquetWriter(path, _schema(), compression="zstd") as writer:
        for start in range(0, len(order), BLOCK):
            rows = order[start : start + BLOCK]
            arrays = [names.take(pa.array(rows))]
            arrays += [pa.array(columns[name][rows], from_pandas=True) for name in COLUMNS]
            arrays.append(pa.array(np.arange(start + 1, start + len(rows) + 1)))
            writer.write_table(pa.Table.from_arrays(arrays, schema=_schema()))
