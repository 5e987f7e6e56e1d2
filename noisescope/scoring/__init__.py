"""From margins to answers: scores, flip rate, weights, annotators, metrics and the summary.

Reads the margins of a run and writes scores.parquet. Numpy, scipy and DuckDB only, no torch.
May import `storage` and below.
"""
