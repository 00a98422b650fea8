"""Training: trainer and its state, schedule and averaging, experiment log, several processes."""
