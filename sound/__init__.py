"""Audio without the model: audio files, CREPE, plucks, atomic file writing, plots and report pages."""
