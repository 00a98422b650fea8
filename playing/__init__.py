"""Curves become sound: block player, offline and causal transfer, export to other hosts, report."""
