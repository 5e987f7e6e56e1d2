"""Figures and the HTML page of a run, and the local review page.

Reads finished runs; no torch. May import `scoring`, `datasets`, `storage` and below.
"""
