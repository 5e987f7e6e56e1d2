"""One audit from dataset and model to a finished run: the API, ranks, shards, merge, validation.

Joins `datasets`, `models`, `replicas` and `scoring`; may import all of them and what they import.
"""
