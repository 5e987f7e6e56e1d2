"""Shared by several tests: tiny real models and datasets, finished runs, stub servers."""
