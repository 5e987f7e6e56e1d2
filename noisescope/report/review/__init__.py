"""People judge pairs: a session over a run's reviews.jsonl, and the local page that shows it.

`session` decides which pair is next and records answers; `server` serves it on 127.0.0.1.
"""
