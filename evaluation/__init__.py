"""Judging a model: scorecard, recogniser of instruments, distributions over time, likeness, report."""
