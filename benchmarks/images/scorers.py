"""Measure detection and speed on image pairs: emoji, glyphs, the sample; against a plain loop.

    python -m benchmarks.images [--quick] [--json FILE] [--data DIR]

Detection, 20 % flips over three seeds, on emoji (clean against degraded or differently captioned),
with a tiny pipeline trained on them once and cached; natural human noise on glyphs-latin (which of
two letters looks more like this one?), beside pixel and perceptual-hash distances and identity
controls; AUROC by number of draws K, and against a replica scored at one draw for the same denoiser
calls; cost of a pair with and without caches. Peer: a plain transcription of DiffusionDPO's
training step (images decoded, VAE and text run each step, a whole second UNet as the reference) on
the same pipeline.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks import emoji
from benchmarks.data import truth
from benchmarks.detect import Material, judge, rates_row, scores_of, uniform
from benchmarks.harness import Options, Report, peak_memory_mib
from benchmarks.images.cost import cost_task, equal_task, replica_task, training_task
from benchmarks.images.steps import MODEL, SAMPLE
from noisescope.datasets import load
from noisescope.datasets.images import decode, image_key
from noisescope.models.denoising import DrawConfig
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.models.features import compute_features
from noisescope.models.items import distinct_items, fold_keys
from noisescope.pairs import PreferenceDataset, digest
from noisescope.replicas.gather import DEFAULT_BETA
from noisescope.replicas.head import HeadConfig, HeadFit, fit_heads
from noisescope.scoring.flip_rate import fit_flip_rate
from noisescope.scoring.metrics import auroc, bayes_auroc

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
BETA, RHO = DEFAULT_BETA["image"], 15.0
EMOJI_PAIRS = 1500
GLYPH_SIDE = 64


def loaded(model: Path, dataset: PreferenceDataset, **settings: Any) -> DiffusionPolicy:
    """Load the pipeline over the dataset's images, in float32 on the CPU."""
    assert dataset.images is not None
    return DiffusionPolicy.load(
        str(model), dataset.images, device="cpu", dtype="float32", **settings
    )


def material(dataset: PreferenceDataset, policy: DiffusionPolicy) -> tuple[Material, float]:
    """Return the dataset with its features, and the seconds they took."""
    items, chosen, rejected = distinct_items(dataset.table)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        features = compute_features(policy, items, Path(scratch), lambda done, total, note: None)
        seconds = time.perf_counter() - began
    return Material(dataset, features, chosen, rejected), seconds


def run(options: Options) -> Report:
    """Run all tasks."""
    report = Report("Detection of wrong labels of image pairs")
    report.tables["detection"] = []
    report.tables["estimates of the audit itself"] = []
    emoji_task(report, options)
    glyphs_task(report, options)
    heads = draws_task(report, options)
    equal_task(report, heads)
    cost_task(report)
    training_task(report, 3 if options.quick else 10)
    if not options.quick:
        replica_task(report)
    report.facts["peak MiB"] = peak_memory_mib()
    return report


def emoji_task(report: Report, options: Options) -> None:
    """Measure clean against degraded or wrong-caption emoji, 20 % uniform flips, three seeds."""
    made = emoji.pairs(emoji.read(options.data), EMOJI_PAIRS)
    policy = loaded(emoji.pipeline(options.data), made.dataset)
    base, seconds = material(made.dataset, policy)
    report.facts["emoji features, seconds"] = seconds
    found: dict[str, list[float]] = {"": [], ", --pool": []}
    seeds = []
    for seed in range(3):
        swap = uniform(EMOJI_PAIRS, 0.2, seed)
        flipped = base.flipped(swap)
        for pooled, aurocs in found.items():
            fit = flipped.fit() if pooled else flipped.score()
            scores, rate = scores_of(flipped, fit, BETA, RHO)
            task = f"emoji + 20 %, seed {seed}{pooled}"
            report.tables["detection"] += judge(task, scores, swap)
            row = rates_row(task, fit, rate, swap, float(swap.mean()))
            report.tables["estimates of the audit itself"].append(row)
            aurocs.append(float(auroc(scores["p_wrong"], swap)))
        seeds.append((scores["p_wrong"], swap))
    groups = {kind: made.kinds == kind for kind in emoji.KINDS}
    groups |= {"captions seen in training": ~made.unseen, "captions never seen": made.unseen}
    report.tables["emoji, --pool, AUROC of p_wrong by what is wrong"] = [
        {
            "pairs of": name,
            "pairs": int(rows.sum()),
            "AUROC": float(np.mean([auroc(score[rows], swap[rows]) for score, swap in seeds])),
        }
        for name, rows in groups.items()
    ]
    median = float(np.median(found[", --pool"]))
    report.at_least("emoji + 20 %, --pool: AUROC of p_wrong, median", median, 0.97)


def glyphs_task(report: Report, options: Options) -> None:
    """Measure natural human noise: one vote against the majority of fifty or more."""
    path = options.data / "glyphs-latin" / "natural.parquet"
    dataset = load(path)
    wrong = truth(dataset, path.with_name("truth.parquet"))
    raw = pq.read_table(path).to_pylist()
    policy = loaded(emoji.pipeline(options.data), dataset, image_size=GLYPH_SIDE)
    base, seconds = material(dataset, policy)
    report.facts["glyphs features, seconds"] = seconds
    faces = [raw[row]["typeface"] for row in dataset.table["row"].to_pylist()]
    by_face = np.array([int(digest(face)[:16], 16) for face in faces], np.uint64)
    pairs, halves = fold_keys(dataset.table), HeadConfig(folds=2)
    letters = letter_rows(raw, dataset)
    fits = {
        "random halves": ours(base, pairs, halves),
        "random halves, not pooled": ours(base, pairs, replace(halves, identity=False)),
        "ten folds": ours(base, pairs, HeadConfig()),
        "typefaces held out": ours(base, by_face, HeadConfig(identity=False)),
    }
    found = {}
    for name, fit in fits.items():
        scores, rate = scores_of(base, fit, BETA, RHO)
        task = f"glyphs, {name}"
        report.tables["detection"] += judge(task, scores, wrong)
        row = rates_row(task, fit, rate, wrong, None)
        report.tables["estimates of the audit itself"].append(row)
        found[name] = float(auroc(scores["p_wrong"], wrong))
    controls = reference_distances(raw, dataset)
    controls["identity, random halves"] = identity(base.chosen, base.rejected, pairs, halves)
    controls["letters, random halves"] = identity(*letters, pairs, halves)
    controls["letters, typefaces held out"] = identity(*letters, by_face, HeadConfig())
    report.tables["detection"] += judge("glyphs, controls", controls, wrong)
    known = {name: float(auroc(score, wrong)) for name, score in controls.items()}
    pixels = max(known["pixel distance"], known["perceptual hash distance"])
    report.at_least("glyphs, random halves: AUROC of p_wrong", found["random halves"], 0.898)
    report.at_least("glyphs, typefaces held out: AUROC", found["typefaces held out"], 0.83)
    for name, control in (
        ("random halves", max(pixels, known["identity, random halves"])),
        ("typefaces held out", pixels),
    ):
        report.at_least(f"glyphs, {name}: AUROC above the controls", found[name] - control, 0)


def ours(base: Material, keys: NDArray[np.uint64], config: HeadConfig) -> HeadFit:
    """Fit heads on all features."""
    return fit_heads(base.features, base.chosen, base.rejected, keys, config)


def identity(
    chosen: NDArray[np.int64],
    rejected: NDArray[np.int64],
    keys: NDArray[np.uint64],
    config: HeadConfig,
) -> Float:
    """Return the suspicion [N] from the identities of the sides alone."""
    nothing = {"nothing": np.zeros((int(max(chosen.max(), rejected.max())) + 1, 1), np.float32)}
    return -fit_heads(nothing, chosen, rejected, keys, config).margins.mean(axis=0)


def letter_rows(
    raw: list[dict[str, Any]], dataset: PreferenceDataset
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows of both sides among distinct (caption, letter), whatever the typeface."""
    known: dict[tuple[str, str], int] = {}
    sides: list[list[int]] = [[], []]
    for pair in dataset.table.select(["row", "chosen"]).to_pylist():
        row = raw[pair["row"]]
        names = [row[f"image_{n}_uid"].rsplit("_", 1)[1] for n in (0, 1)]
        ordered = names if image_key(row["jpg_0"]) == pair["chosen"] else names[::-1]
        for side, name in zip(sides, ordered, strict=True):
            side.append(known.setdefault((row["caption"], name), len(known)))
    return np.array(sides[0]), np.array(sides[1])


def reference_distances(raw: list[dict[str, Any]], dataset: PreferenceDataset) -> dict[str, Float]:
    """Return how much farther from the reference the chosen image is than the rejected, [N]."""
    grey: dict[str, Float] = {}

    def seen(data: bytes) -> str:
        key = image_key(data)
        if key not in grey:
            image = decode(data).convert("L").resize((GLYPH_SIDE, GLYPH_SIDE))
            grey[key] = np.asarray(image, np.float64) / 255
        return key

    out: dict[str, list[float]] = {"pixel distance": [], "perceptual hash distance": []}
    for pair in dataset.table.select(["row", "chosen"]).to_pylist():
        row = raw[pair["row"]]
        wanted, one, other = (seen(row[name]) for name in ("reference_jpg", "jpg_0", "jpg_1"))
        chosen, rejected = (one, other) if one == pair["chosen"] else (other, one)
        pixels = [np.mean((grey[key] - grey[wanted]) ** 2) for key in (chosen, rejected)]
        hashes = [
            np.mean(perceptual_hash(grey[key]) != perceptual_hash(grey[wanted]))
            for key in (chosen, rejected)
        ]
        out["pixel distance"].append(float(pixels[0] - pixels[1]))
        out["perceptual hash distance"].append(float(hashes[0] - hashes[1]))
    return {name: np.array(values) for name, values in out.items()}


def perceptual_hash(image: Float) -> Bool:
    """Compute pHash: signs of the 8 x 8 lowest cosine coefficients about their median, [64]."""
    from scipy.fft import dctn

    low = dctn(image, norm="ortho")[:8, :8].ravel()
    return np.asarray(low > np.median(low[1:]))


def draws_task(report: Report, options: Options) -> dict[int, float]:
    """Measure the sample's simulated users by number of draws K, without identities and pooled.

    Returns the AUROC without identities by K.
    """
    dataset = load(SAMPLE)
    wrong = truth(dataset, SAMPLE / "truth.parquet")
    rows: list[dict[str, Any]] = []
    for k in (1, 4) if options.quick else (1, 2, 4, 8):
        policy = loaded(MODEL, dataset, draws=DrawConfig.spread(k))
        base, seconds = material(dataset, policy)
        if k == 1:
            error = base.features["error_statistics"][:, 0]
            alone = error[base.chosen] - error[base.rejected]
            rows.append(draws_row("the model's own error", 0, 1, alone, wrong, seconds))
        for pooled in (False, True):
            fit = base.fit(identity=pooled)
            name = "heads, pooled" if pooled else "heads"
            margins = -fit.margins.mean(axis=0, dtype=np.float64)
            rows.append(draws_row(name, k, policy.draws.calls, margins, wrong, seconds))
    report.tables["sample, AUROC by draws"] = rows
    best = {row["draws"]: row["AUROC"] for row in rows if row["scorer"] == "heads, pooled"}
    report.at_least("sample, K = 4: AUROC of p_flip", best[4], 0.80)
    report.at_least("sample: AUROC of K = 4 above K = 1", best[4] - best[1], 0)
    return {row["draws"]: row["AUROC"] for row in rows if row["scorer"] == "heads"}


def draws_row(
    scorer: str, k: int, calls: int, score: Float, wrong: Bool, seconds: float
) -> dict[str, Any]:
    """Return one row of the draws table; its limit is what its own margins allow."""
    rate = fit_flip_rate(-score) if k else None
    return {
        "scorer": scorer,
        "draws": k or 1,
        "denoiser calls": calls,
        "AUROC": float(auroc(score, wrong)),
        "Bayes": float(bayes_auroc(rate.gap(-score))) if rate else None,
        "feature seconds": seconds,
        "pairs/s": len(wrong) / seconds,
    }
