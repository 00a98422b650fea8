"""Sound as such, below the model: audio files, CREPE, atomic files, figures of sound."""
