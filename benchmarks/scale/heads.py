"""Measure how fitting heads grows with the pairs, prompts held out whole: seconds and memory.

    python -m benchmarks.scale.heads [--quick] [--json FILE]

Simulated labels, 28 pairs a prompt, a fifth of them wrong; features of WIDTHS numbers; eight
replicas of ten folds, as `noisescope score` fits them. 10,000 to 1,000,000 pairs (to 100,000 with
--quick), each size in a process of its own. The slope is that of log(CPU seconds) over log(pairs)
from 10,000 to the most: 1 is proportional.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Options, Report, main
from benchmarks.scale.steps import took

SIZES, QUICK_SIZES, WIDTHS = (10_000, 100_000, 1_000_000), (10_000, 100_000), (64, 512)
SLOPE = 1.15
#: One fit, without the seconds that making the labels takes; CPU and memory are of the process.
FIT = """
import numpy as np
from benchmarks.planted_noise import plant, simulated
from noisescope.replicas.head import HeadConfig, fit_heads
made = plant(simulated(int(sys.argv[1]), 0, width=int(sys.argv[2])), "uniform", 0.2, 0)
began = time.perf_counter()
fit = fit_heads(made.features, made.chosen, made.rejected, made.keys, HeadConfig(),
                held_out=made.prompts.astype(np.uint64))
assert 0.6 < fit.accuracy.mean() < 0.8, fit.accuracy
report()
"""


def run(options: Options) -> Report:
    """Fit every size and width."""
    report = Report("Fitting heads with prompts held out")
    for width in WIDTHS:
        rows: list[dict[str, Any]] = []
        for pairs in QUICK_SIZES if options.quick else SIZES:
            rows.append({"pairs": pairs} | took(FIT, ROOT, pairs, width))
            print(f"{width} features: {rows[-1]}", file=sys.stderr, flush=True)
        report.tables[f"{width} features, 8 x (10 + 1) fits"] = rows
        first, last = rows[0], rows[-1]
        grown = np.log(last["CPU"] / first["CPU"]) / np.log(last["pairs"] / first["pairs"])
        report.at_most(f"{width} features: slope", float(grown), SLOPE)
    return report


if __name__ == "__main__":
    main(__doc__, run)
