"""Synthesis of sound from curves: block player, offline and causal transfer, the live graph, export to other hosts."""
