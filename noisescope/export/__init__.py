"""Export a finished run: weights, cleaned datasets, TRL datasets, review queues, the Hub.

    scores = find_run_scores("hh-rlhf", Path("runs"))
    export_weights(scores, Path("weights.parquet"))

One file a format. Reads runs and datasets in record batches; no torch. May import `scoring`,
`datasets`, `storage` and below.
"""

from __future__ import annotations
