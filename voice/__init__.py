"""From a recording to the melody an instrument plays: voicing, notes, fit to the instrument, MIDI, curve files."""
