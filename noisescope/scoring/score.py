"""From a run's margins to scores.parquet and its summary. No torch; seconds for a million pairs.

Usage: `summary = score_run(Path("runs/hh-rlhf-1a2b3c4d"), ScoreConfig())`. Verdicts are cheap and
never touch the evidence: call it again with another rho or k1. Margins are read in blocks of
pairs, and what must be sorted is sorted on disk: beside DuckDB's memory some 250 bytes a pair are
held, whatever M is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, UsageError
from noisescope.scoring.detectors import (
    RHO,
    batch_norm,
    confidence,
    mean_over,
    stability,
    u_released,
)
from noisescope.scoring.find import check_counts, expected_finds
from noisescope.scoring.giveaways import run_notes
from noisescope.scoring.margins import RunMargins, connect, failure, read_margins
from noisescope.scoring.noise_models import Noise, fit_noise, log_odds
from noisescope.scoring.pair_facts import PairFacts, read_facts
from noisescope.scoring.review_estimate import Recalibration, levelled
from noisescope.scoring.reviews import reviews_of_unwritten
from noisescope.scoring.scores import COLUMNS, ranks, write_scores
from noisescope.scoring.standouts import find_standouts
from noisescope.scoring.summary import Summary, Totals, summarise
from noisescope.scoring.weights import WeightConfig, adaptive_weights
from noisescope.storage.run import Run
from noisescope.storage.sql import Spill

Float = NDArray[np.float64]

SUSPECTS = 10
#: Note for adapters that may have been trained on these pairs.
IN_SAMPLE = (
    "These adapters may have trained on the very pairs they judge. The margins are in-sample: "
    "held-out accuracy, flip rate and expected AUROC are too good, and learned errors look right. "
    "Score with --held-out if they never saw these pairs."
)


@final
@dataclass(frozen=True)
class ScoreConfig:
    """Constants of Eq. 11 (rho: 1 for text, 15 for images) and Eq. 14-15 (k1, k2, c2).

    `rho` None is the modality's default; see `weights` for k2 and c2.
    `released` takes W and Gamma from `u_released` instead of u; None does so for images, whose
    l = margin / beta, beta in the thousands, leaves u at 0. `spill` decides no number.
    """

    rho: float | None = None
    k1: float = 10.0
    k2: float = -1.0
    c2: float = 0.0
    released: bool | None = None
    spill: Spill = field(default_factory=Spill)

    def __post_init__(self) -> None:
        if self.rho is not None and not (np.isfinite(self.rho) and self.rho > 0):
            raise UsageError(
                f"--rho must be above 0, not {self.rho:g}",
                hint="The paper has 1 for text and 15 for images.",
            )
        _ = self.weights

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> ScoreConfig:
        """The constants that a manifest states; the usual ones in place of missing ones."""
        names = ("rho", "k1", "k2", "c2", "released")
        return cls(**{name: stated[name] for name in names if name in stated})

    @property
    def weights(self) -> WeightConfig:
        """The constants of W and Gamma. Raises UsageError where they make no sense."""
        return WeightConfig(self.k1, self.k2, self.c2)

    def metric(self, modality: str) -> str:
        """The column that W and Gamma are made of: u or u_released."""
        released = modality == "image" if self.released is None else self.released
        return "u_released" if released else "u"


def score_run(directory: Path, config: ScoreConfig | None = None) -> Summary:
    """Judge every pair of the run in `directory`, write scores.parquet, return the summary.

    If people have judged a sample of these pairs, p_wrong is recalibrated on their answers, and the
    mean of p_prior is the share of wrong labels that they found.

    Needs plan.json (beta), pairs.parquet and margins/part-*.parquet. Raises RunError where they
    are missing, damaged or incomplete, EvidenceError with fewer than ten pairs.
    """
    import duckdb
    import pyarrow as pa

    config, run = config or ScoreConfig(), Run(directory)
    beta, modality = _plan_facts(run)
    rho = RHO[modality] if config.rho is None else config.rho
    with config.spill.folder(directory) as folder:
        found = read_margins(directory, spill=config.spill, scratch=folder)
        averages = read_averages(run, spill=config.spill, scratch=folder)
        _check_replicas(run, len(found.replicas))
        try:
            with connect(config.spill.memory, folder) as connection:
                facts = read_facts(run.pairs_path, modality, connection)
            seen = survey(found, averages, beta, facts, modality)
            people = reviews_of_unwritten(run, seen.p_wrong)
            recalibration = people and people.recalibration
            share = people.share() if people and recalibration else None
            if share is not None:
                seen = replace(seen, p_prior=levelled(seen.p_prior, share.estimate))
            totals = _write(run, found, averages, seen, rho, config, folder, recalibration)
        except (duckdb.Error, pa.ArrowException) as error:
            raise failure(error, directory, folder, [run.pairs_path]) from error
    training = run.evidence_manifest().get("training") if run.complete else None
    counts = check_counts(len(seen.margins))
    summary = summarise(
        run,
        len(found.replicas),
        seen.base,
        totals,
        seen.noise,
        facts,
        training=training,
        suspects=SUSPECTS,
        people=people,
        find=expected_finds(seen.noise, seen.margins, counts, people),
        annotators=find_standouts(run, seen.noise, seen.margins),
        in_sample=found.in_sample,
        giveaways=run_notes(run) if modality != "image" else (),
    )
    return replace(summary, notes=(IN_SAMPLE, *summary.notes)) if found.in_sample else summary


def _write(
    run: Run,
    found: RunMargins,
    averages: RunMargins | None,
    seen: Survey,
    rho: float,
    config: ScoreConfig,
    folder: Path,
    recalibration: Recalibration | None,
) -> Totals:
    """Write scores.parquet; what its summary adds up. Ranks are those without reviews."""
    parts: list[Totals] = []

    def counted() -> Iterator[tuple[slice, dict[str, Float]]]:
        for block, columns in judged_blocks(found, averages, seen, rho=rho, config=config):
            if recalibration is not None:
                columns["p_wrong"] = recalibration(columns["p_wrong_audit"])
            parts.append(Totals.of(columns))
            yield block, columns

    with connect(config.spill.memory, folder) as connection:
        rank = ranks(seen.p_wrong, seen.margins)
        write_scores(run.scores_path, run.pairs_path, counted(), rank, connection)
    return Totals.together(parts)


def read_averages(
    run: Run, *, spill: Spill | None = None, scratch: Path | None = None
) -> RunMargins | None:
    """Read the margins of the replicas' averaged copies (`--ema`); None if the run has none."""
    folder = run.averages_directory
    if not any(folder.glob("part-*.parquet")):
        return None
    return read_margins(run.directory, folder=folder.name, spill=spill, scratch=scratch)


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


@final
@dataclass(frozen=True)
class Survey:
    """What one pass over all pairs finds: each one's mean margin [N] over the replicas that count,
    `base` [N] without its shift (equal without a judge's budget; see `margins.write_part`),
    the batch norm of l of each replica [M, 1] and averaged copy [2M, 1], the noise models, p_wrong
    [N], and p_prior [N] (`noise_models.Noise.p_prior`).
    """

    beta: float
    modality: str
    margins: Float
    base: Float
    scale: Float
    copies_scale: Float
    noise: Noise
    p_wrong: Float
    p_prior: Float


def survey(
    found: RunMargins,
    averages: RunMargins | None,
    beta: float,
    facts: PairFacts | None = None,
    modality: str = "text",
) -> Survey:
    """One pass over the margins. Raises EvidenceError with fewer than ten pairs."""
    margins = np.empty(len(found))
    for block, values, counted in found.blocks():
        margins[block] = mean_over(np.where(counted, values, np.nan))
    scale = batch_norm(_scale(found) / beta, modality)
    copies = scale if averages is None else batch_norm(_scale(averages) / beta, modality)
    base = margins if found.shift is None else margins - found.shift
    noise = fit_noise(base, facts)
    p_wrong = noise.p_wrong(margins)
    evidence = [] if found.outside is None else [found.outside.astype(np.float64)]
    if found.shift is not None:
        evidence.append(log_odds(noise.p_wrong(base)) - log_odds(p_wrong))
    p_prior = np.where(np.isnan(p_wrong), np.nan, noise.p_prior(*evidence))
    return Survey(beta, modality, margins, base, scale, copies, noise, p_wrong, p_prior)


def judge(
    found: RunMargins,
    *,
    beta: float,
    rho: float,
    config: ScoreConfig,
    averages: RunMargins | None = None,
    facts: PairFacts | None = None,
    modality: str = "text",
) -> tuple[dict[str, Float], Noise]:
    """All of `COLUMNS` [N] and the fitted noise models, without reviews.

    `averages` are two averaged copies a replica, of which `u_released` is then made.
    """
    seen = survey(found, averages, beta, facts, modality)
    columns = {name: np.empty(len(found)) for name in COLUMNS}
    for block, values in judged_blocks(found, averages, seen, rho=rho, config=config):
        for name in COLUMNS:
            columns[name][block] = values[name]
    return columns, seen.noise


def judged_blocks(
    found: RunMargins, averages: RunMargins | None, seen: Survey, *, rho: float, config: ScoreConfig
) -> Iterator[tuple[slice, dict[str, Float]]]:
    """All of `COLUMNS` [n] of each block of pairs, without reviews."""
    copies = None if averages is None else averages.blocks()
    for block, margins, counted in found.blocks():
        logratios, held_out = margins / seen.beta, np.where(counted, margins, np.nan)
        columns = {"margin": seen.margins[block]}
        columns["confidence"] = confidence(logratios, rho)
        columns["stability"] = stability(logratios)
        columns["u"] = columns["stability"] * columns["confidence"]
        if copies is None:
            columns["u_released"] = u_released(logratios, rho, seen.scale)
        else:
            averaged = next(copies)[1] / seen.beta
            scales = seen.scale, seen.copies_scale
            columns["u_released"] = u_of_trios(logratios, averaged, counted, rho, scales)
        rate = seen.noise.single
        columns["contested"] = rate.contested(held_out)
        columns["p_wrong"] = columns["p_wrong_audit"] = seen.p_wrong[block]
        columns["p_prior"] = seen.p_prior[block]
        columns["p_flip"] = rate.p_flip(columns["margin"])
        columns["p_mislabelled"] = rate.p_mislabelled(columns["margin"])
        columns["W"], columns["gamma"] = adaptive_weights(
            columns[config.metric(seen.modality)],
            config.weights,
        )
        yield block, columns


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


def _scale(found: RunMargins) -> Float:
    """Root mean square margin of each replica over the dataset, [M, 1]; 1 for all-zero ones."""
    squares = np.zeros((len(found.replicas), 1))
    judged = np.zeros((len(found.replicas), 1), np.int64)
    for _, margins, _ in found.blocks():
        squares += np.nansum(np.square(margins), axis=1, keepdims=True)
        judged += np.isfinite(margins).sum(axis=1, keepdims=True)
    scale = np.sqrt(squares / np.maximum(judged, 1))
    return np.where(scale > 0, scale, 1.0)
