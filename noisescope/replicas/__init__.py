"""Replicas: several fits of one dataset whose disagreement and held-out margins are the evidence.

`head` fits log-linear replicas on frozen features in seconds; `folds` decides, by content hash,
which replica and fold hold a pair out; `solver` is the numerical part.
"""
