"""Model evaluation: scorecard, instrument recogniser, distributions over time, report."""
