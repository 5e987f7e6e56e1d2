"""Compare the methods on images: which emoji picture is better, by a diffusion model's errors.

    python -m benchmarks.downstream.images [--quick] [--json FILE] [--data DIR]

Pairs of `benchmarks.emoji` (a clean picture against a degraded one or one with a different caption,
the truth known), features of the tiny pipeline trained on emoji, policies and methods of
`benchmarks.downstream`. Captions are split: a third for testing, a fifth for (noisy) validation,
the rest for training.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import emoji
from benchmarks.detect import Material
from benchmarks.downstream.methods import OURS
from benchmarks.downstream.policies import split_of
from benchmarks.downstream.tables import tabulate
from benchmarks.downstream.topics import FLIPS, REGIMES, by_regime, planted
from benchmarks.harness import Options, Report, main
from benchmarks.images.scorers import loaded
from benchmarks.models import cache
from noisescope.models.features import compute_features
from noisescope.models.items import distinct_items
from noisescope.pairs import digest

PAIRS = 1500


def run(options: Options) -> Report:
    """Run all rates of all seeds."""
    torch.set_num_threads(1)
    made = emoji.pairs(emoji.read(options.data), PAIRS)
    policy = loaded(emoji.pipeline(options.data), made.dataset)
    items, chosen, rejected = distinct_items(made.dataset.table)
    kept = cache().parent / "features"
    features = compute_features(policy, items, kept, lambda done, total, note: None)
    base = Material(made.dataset, features, chosen, rejected)
    report = Report("Training on noisy labels of images, judged on clean pairs of new captions")
    group = np.unique(made.kinds, return_inverse=True)[1]
    captions = made.dataset.table.column("prompt").to_pylist()
    found, model = {}, policy.identity.fingerprint
    for seed in range(options.seed, options.seed + (3 if options.quick else 5)):
        position = np.array([int(digest(str(seed), name)[:8], 16) / 16**8 for name in captions])
        test = position < 1 / 3
        split = split_of(base, test, ~test & (position < 1 / 3 + 0.2))
        for where in (("uniform", rate) for rate in FLIPS):
            found[seed, where] = planted(base, split, group[test], where, seed, model)
    tabulate(by_regime(found), OURS, REGIMES, report, "emoji")
    return report


if __name__ == "__main__":
    main(__doc__, run)
