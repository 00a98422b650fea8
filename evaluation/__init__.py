"""Judging a model: scorecard, likeness to the instrument, report."""
