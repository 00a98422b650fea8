"""Judge a model: recogniser of instruments, distributions over time, and distances between sounds.

Nothing here is needed to train or to play. Import from the modules themselves.
"""
