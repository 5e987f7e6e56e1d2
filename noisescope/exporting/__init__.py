"""What an audit is good for elsewhere: weights, cleaned datasets, review queues, the Hub.

    scored = find_scored("hh-rlhf", Path("runs"))
    export_weights(scored, Path("weights.parquet"))

One file a format; `scored` reads a run, `policy` decides about its pairs, `places` sees to it that
nothing is overwritten that an export did not make. No torch; record batches all the way.
"""

from __future__ import annotations
