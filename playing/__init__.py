"""Curves become sound: block player, offline and causal transfer, the live graph, export to other hosts."""
