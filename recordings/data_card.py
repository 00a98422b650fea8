"""The card of a data set on the Hugging Face Hub: what its index says of the recordings, in Markdown."""

import re

from huggingface_hub import DatasetCard

from recordings.hub_client import HubIndex

HUB_LICENCES = ("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "mit", "apache-2.0")
_MARKS = ("<!-- statistics -->", "<!-- /statistics -->")  # around what is written anew at each upload

_HEAD = """---
tags: [audio, ddsp, {instrument}]
---

# {repo_id}

Recordings of one instrument, {instrument}, measured for training a DDSP instrument (Engel et al., ICLR 2020): f0,
A-weighted loudness and sound, one `.pt` file each.

{marks}
"""

_STATISTICS = """{begin}

| | |
|---|---|
| instrument | {instrument} |
| licence | {licence} |
| recordings | {n_recordings:,} ({n_takes:,} different) |
| length | {minutes:.1f} minutes |
| pitch | {pitch} |
| sound | {sample_rate:,} Hz, {frame_rate:g} frames a second |

Measured with:

| setting | value |
|---|---|
{settings}

Train on it while it downloads:

```bash
./venv/bin/python train.py --hf_repo_id {repo_id}
```

{end}"""


def format_dataset_card(index: HubIndex, repo_id: str, licence: str | None, old: str | None) -> str:
    """Return the data card; an old one keeps what is outside of the marks, and its licence unless one is given."""
    card = DatasetCard(old or _HEAD.format(repo_id=repo_id, instrument=index.instrument, marks="\n".join(_MARKS)))
    if licence is not None or card.data.license is None:
        known = licence is not None and licence.lower() in HUB_LICENCES
        card.data.license = licence.lower() if known else "other" if licence else "unknown"
        card.data.license_name = None if known else licence
    statistics = _write_statistics(index, repo_id, card.data.get("license_name") or card.data.license)
    card.text = re.sub(f"{_MARKS[0]}.*?{_MARKS[1]}", lambda _: statistics, card.text, flags=re.S)
    return str(card)


def _write_statistics(index: HubIndex, repo_id: str, licence: str) -> str:
    audio = index.extractor["audio"]
    frame_rate = audio["sample_rate"] / audio["hop_length"]
    ranges = [entry.f0_range for entry in index.recordings if entry.f0_range]
    sections = ("audio", "features")
    settings = [(f"{name}.{key}", value) for name in sections for key, value in index.extractor[name].items()]
    return _STATISTICS.format(
        begin=_MARKS[0],
        end=_MARKS[1],
        repo_id=repo_id,
        instrument=index.instrument,
        licence=licence,
        n_recordings=len(index.recordings),
        n_takes=len({entry.take for entry in index.recordings}),
        minutes=sum(entry.n_frames for entry in index.recordings) / frame_rate / 60,
        pitch=f"{min(low for low, _ in ranges):.0f} to {max(high for _, high in ranges):.0f} Hz" if ranges else "none",
        sample_rate=audio["sample_rate"],
        frame_rate=frame_rate,
        settings="\n".join(f"| `{key}` | {value} |" for key, value in settings),
    )
