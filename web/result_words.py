"""Text about a result for musicians: a summary sentence, and problems with suggested fixes.

A fix sets controls of the page, by the field names of ``TransferOptions``.
"""

from typing import Any

import numpy as np

from playing.offline_transfer import is_polyphonic
from sound.crepe import hz_to_midi, note_name
from voice.harmony import read_harmonies
from voice.instrument_fit import TransferOptions, fraction_out_of_range
from web.transfer_request import TransferOutcome

_WORTH_SAYING = 0.02  # share of the sung frames
_DRAWN_EVERY = 4  # frames
_OCTAVES = {0: "where you sang it", 12: "one octave higher", 24: "two octaves higher", -12: "one octave lower"}
_OCTAVES[-24] = "two octaves lower"


def describe_result(outcome: TransferOutcome, options: TransferOptions) -> str:
    """Return a sentence with the pitch shift, the range of notes, and whether the instrument can play them all."""
    semitones, sung = round(outcome.report["semitones"]), outcome.curves.f0[outcome.curves.voiced]
    way = "higher" if semitones > 0 else "lower"
    place = _OCTAVES.get(semitones, f"{abs(semitones)} semitones {way}")
    if not np.isfinite(outcome.voice_loudness):
        place = place.replace("you sang it", "it is written")
    low, high = (note_name(float(f0)) for f0 in np.quantile(sung, (0.02, 0.98)))
    share = outcome.report["share_out_of_range"]
    fits = (
        f"every note fits the {outcome.sound}"
        if share < _WORTH_SAYING
        else f"{100 * share:.0f} % of it lies outside the {outcome.sound}'s range"
    )
    voiced, moved = outcome.curves.voiced, hz_to_midi(outcome.curves.f0) - hz_to_midi(outcome.voice_f0) - semitones
    is_folded = options.fold and np.mean(np.abs(moved[voiced]) > 6) > _WORTH_SAYING
    folded = ", what lay outside moved by octaves" if is_folded else ""
    return f"Played {place}{folded}, {low} to {high}{_describe_players(options)}; {fits}."


def _describe_players(options: TransferOptions) -> str:
    names = [name.replace("_", " ") for name in read_harmonies(options.harmony)] if options.harmony else []
    harmony = f", with the {' and the '.join(names)}" if names else ""
    return harmony + (f", {options.ensemble} players for each" if options.ensemble > 1 else "")


def find_notices(outcome: TransferOutcome, options: TransferOptions) -> list[dict[str, Any]]:
    """Return warnings about the result, each with a ``text`` and ``fixes`` (``label``, ``set``)."""
    notices = []
    if is_polyphonic(outcome.report):
        text = "I hear more than one note at a time: a band, or chords. I follow one line of it, often the wrong one. "
        notices.append({"text": text + "Please give me only the singing.", "fixes": []})
    if outcome.report["share_too_high"] > _WORTH_SAYING:
        notices.append({"text": "Some of it is too high for me to hear, and stays silent.", "fixes": []})
    if outcome.report["share_out_of_range"] >= _WORTH_SAYING:
        text = (
            f"{100 * outcome.report['share_out_of_range']:.0f} % of the notes are out of the {outcome.sound}'s range."
        )
        notices.append({"text": text, "fixes": _find_fixes(outcome, options)})
    return notices


def _find_fixes(outcome: TransferOutcome, options: TransferOptions) -> list[dict[str, Any]]:
    """Return the fixes that bring more notes into range."""
    fixes = [] if options.fold else [{"label": "Move those by an octave", "set": {"fold": True}}]
    sung, here = outcome.curves.f0[outcome.curves.voiced], outcome.report["share_out_of_range"]
    octave = outcome.report["semitones"] - options.transpose
    for step, label in ((12, "Play all one octave higher"), (-12, "Play all one octave lower")):
        is_better = fraction_out_of_range(sung * 2 ** (step / 12), outcome.profile) < here / 2
        if is_better and octave + step in (-24, -12, 0, 12, 24):
            fixes.append({"label": label, "set": {"semitones": int(octave + step)}})
    return fixes


def draw_pitch(outcome: TransferOutcome) -> dict[str, Any]:
    """Return the curves of the pitch plot, in MIDI numbers rounded to 0.1; None where unvoiced."""
    config, curves = outcome.profile.config, outcome.curves

    def curve(f0: np.ndarray, sounds: np.ndarray) -> list[float | None]:
        notes = np.round(hz_to_midi(f0[::_DRAWN_EVERY]), 1)
        return [float(note) if here else None for note, here in zip(notes, sounds[::_DRAWN_EVERY])]

    return {
        "rate": config.audio.frame_rate / _DRAWN_EVERY,
        "sung": curve(outcome.voice_f0, curves.voiced),
        "played": curve(curves.f0, curves.voiced),
    }
