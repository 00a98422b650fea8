"""A recording becomes a melody: voicing, gate, notes, fit to an instrument, MIDI, curve files."""
