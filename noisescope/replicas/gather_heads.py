"""Compute the margins of log-linear heads: features of every distinct response, then the fits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, final

from noisescope.models.items import distinct_items, fold_keys
from noisescope.progress import Reporter, Stopwatch, counted
from noisescope.replicas.gather import Responses, Wait, Worker, cache_directory, kept_encodings
from noisescope.replicas.partition import WHOLE, Share


@final
class HeadWork(Responses):
    """Features of every distinct response, then log-linear replicas on them."""

    without: ClassVar[str] = "have no features"
    stage: ClassVar[str] = "features"

    @property
    def cache(self) -> tuple[Path, str]:
        model = self.plan.model_fingerprint
        return cache_directory(self.run) / model, model

    def compute(
        self, by: Worker, units: Sequence[int], share: Share = WHOLE, wait: Wait | None = None
    ) -> int:
        """Compute the features that are not cached, after an estimate of the cost.

        Raises RunError, DataError or ModelError.
        """
        from noisescope.models.features import fill_cache, uncached

        if not units:
            return 0
        cache, items = cache_directory(self.run), [self.items[unit] for unit in units]
        todo = uncached(by.policy, items, cache)
        encodings = kept_encodings(by.policy, self.run)
        unit = "pictures" if self.plan.modality == "image" else "responses"
        by.reporter.note(_work(len(todo), len(items), unit))
        if encodings is not None and todo:
            with by.reporter.stage("latents of images, embeddings of captions") as progress:
                encodings.keep(todo, progress)
        label = f"features of {len(todo):,} distinct {unit}{share.label}"
        with by.reporter.stage(label) as progress:
            fill_cache(by.policy, items, cache, progress)
        return len(todo)

    def write_margins(
        self, facts: Mapping[str, Any], reporter: Reporter, watch: Stopwatch
    ) -> dict[str, Any]:
        """Fit the replicas and write margins/part-0.parquet. Raises RunError if features are
        missing."""
        import numpy as np

        from noisescope.models.features import cached_features
        from noisescope.replicas.groups import held_out_groups
        from noisescope.replicas.head import HeadConfig, fit_heads
        from noisescope.replicas.outside import read_outside
        from noisescope.replicas.second_fits import second_fits
        from noisescope.replicas.selected import with_answers
        from noisescope.replicas.source_fits import (
            MODEL,
            Evidence,
            fits_of,
            outside_odds,
            what_each_added,
        )
        from noisescope.replicas.source_heads import origins
        from noisescope.scoring.margins import OUTSIDE, SHIFT, write_margins, write_part
        from noisescope.scoring.opinions import second_opinions, write_opinions
        from noisescope.scoring.pair_facts import read_facts
        from noisescope.scoring.triads import count_triads

        settings, table = self.plan.evidence, self.table
        items, chosen, rejected = distinct_items(table)
        began = time.perf_counter()
        features = cached_features(items, cache_directory(self.run), self.plan.model_fingerprint)
        outside = read_outside(self.run, cache_directory(self.run), settings, table, items)
        config = HeadConfig(
            replicas=settings["replicas"],
            folds=settings["folds"],
            seed=settings["seed"],
            identity=settings["pool"],
            test_chance=True,
        )
        folds_by = settings.get("folds_by", "pair")
        groups = held_out_groups(table, folds_by)
        if groups.remark:
            reporter.note(groups.remark)
        label = f"fitting {config.replicas} replicas x {config.folds} folds"
        reporter.note(label)
        keys = fold_keys(table)
        groups_of = {MODEL: tuple(features), **outside.groups}
        features |= outside.features
        write_opinions(self.run, table, second_opinions(features, chosen, rejected))
        facts_of_pairs = read_facts(self.run.pairs_path, self.plan.modality)
        with reporter.stage(label) as progress:
            fit = fit_heads(
                features,
                chosen,
                rejected,
                keys,
                config,
                numbers=outside.fitted,
                held_out=groups.keys,
                sources=facts_of_pairs.sources,
                progress=counted(progress, config.search_steps + config.replicas),
            )
        margins, shift, weights = with_answers(fit.margins, facts_of_pairs, outside.selected)
        write_part(self.run.margins_directory, SHIFT, table.column("pair_id"), shift)
        write_margins(
            self.run.margins_directory / "part-0.parquet",
            table.column("pair_id"),
            margins[:, None, :],
            steps=[1],
            held_out=np.ones(fit.margins.shape, bool),
        )
        sides = (chosen, rejected)
        with reporter.stage("second fits, other pairs held out"):
            others = second_fits(
                table, features, sides, folds_by, config, fit, facts_of_pairs, outside.fitted
            )
        reports = []
        if outside.groups:
            reporter.note(f"fitting with and without each of {len(groups_of)} sources")
            whole = Evidence(features, outside.numbers, sides, keys, groups.keys, config)
            with reporter.stage("fitting with and without each source"):
                fits = fits_of(whole, groups_of)
                added = what_each_added(whole, groups_of, fits)
                odds = outside_odds(whole, groups_of, fits, facts_of_pairs, outside.selected)
            write_part(self.run.margins_directory, OUTSIDE, table.column("pair_id"), odds)
            reports = [replace(one, weight=weights.get(one.source, one.weight)) for one in added]
        watch.time("replicas", began)
        return {
            "pooled": fit.pooled,
            "held_out_log_likelihood": fit.log_likelihood,
            "chance_p": fit.chance,
            "held_out_remark": groups.remark,
            "by_source": fit.by_source
            and fit.by_source.to_json(origins(table, facts_of_pairs.sources), fit.variance),
            "contrasts": [contrast.to_json() for contrast in others],
            "triads": vars(count_triads(chosen, rejected)),
            **({"sources": [report.to_json() for report in reports]} if reports else {}),
        }


def _work(todo: int, distinct: int, unit: str) -> str:
    """How much of the feature pass is to be computed; its time is known once it runs."""
    if not todo:
        return f"features of all {distinct:,} distinct {unit} are cached"
    return f"{todo:,} of {distinct:,} distinct {unit} to compute"
