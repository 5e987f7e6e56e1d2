"""Flip labels on purpose: the `plan`, the `copy` that is written, and the `ground_truth` file."""
