"""Kills, stops and concurrent processes: interrupted commands end like uninterrupted ones."""
