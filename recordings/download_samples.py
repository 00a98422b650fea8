"""Fetch sampled real instruments from their public sources, check each file, and put them into folders by collection.

``sample_checksums.txt`` lists what belongs to a collection: file name and the first 32 digits of its sha256. Files of
the orchestra and of FreePats are the published ones, byte for byte. Those of Shinyguitar and VSCO 2 are published as
wav; there the digits are those of the 16-bit samples, and a file that differs is used, but named.
"""

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import soundfile as sf
from tqdm import tqdm

from recordings.archives import Member, naming_damage, read_members, read_zip
from recordings.resumable_download import DamagedDownloadError, DataError, DownloadSource, deleting_damaged, download
from sound.atomic_files import atomic_write

log = logging.getLogger(__name__)

CHECKSUMS = Path(__file__).with_name("sample_checksums.txt")
LARGEST = 1 << 30  # bytes of an archive inside an archive, and of a recording
SOUNDS = (".mp3", ".flac", ".wav")
BY_HAND = "fetch it by hand from the address beside the licence, and name it by --local_archive or --local_dir"
ORCHESTRA = "https://philharmonia-assets.s3-eu-west-1.amazonaws.com/uploads/2020/02/12112005"
ORCHESTRA_PAGE = "https://philharmonia.co.uk/resources/sound-samples"
GITHUB = "https://raw.githubusercontent.com"
ORCHESTRA_LICENCE = (
    "Philharmonia Orchestra sound samples, CC BY-SA 3.0; must not be sold or made available as samples or as a "
    f"sampler instrument. {ORCHESTRA_PAGE}"
)


@dataclass(frozen=True)
class Collection:
    """Where the files of one folder come from."""

    licence: str
    archive: str = ""  # a zip below ORCHESTRA, which may hold further zips
    base: str = ""  # or the address below which each file is
    exact: bool = True  # whether the published bytes are those of the checksums


COLLECTIONS = {
    "trumpet_philharmonia": Collection(ORCHESTRA_LICENCE, archive="Brass.zip"),
    "saxophone_philharmonia": Collection(ORCHESTRA_LICENCE, archive="Woodwind.zip"),
    "flute_philharmonia": Collection(ORCHESTRA_LICENCE, archive="Woodwind.zip"),
    "violin_philharmonia": Collection(ORCHESTRA_LICENCE, archive="Strings.zip"),
    "others/bassoon": Collection(ORCHESTRA_LICENCE, archive="Woodwind.zip"),
    "others/clarinet": Collection(ORCHESTRA_LICENCE, archive="Woodwind.zip"),
    "others/oboe": Collection(ORCHESTRA_LICENCE, archive="Woodwind.zip"),
    "others/trombone": Collection(ORCHESTRA_LICENCE, archive="Brass.zip"),
    "others/banjo": Collection(ORCHESTRA_LICENCE, archive="Strings.zip"),
    "others/cello": Collection(ORCHESTRA_LICENCE, archive="Strings.zip"),
    "others/mandolin": Collection(ORCHESTRA_LICENCE, archive="Strings.zip"),
    "trumpet_vsco": Collection(
        "VSCO 2 Community Edition by Versilian Studios; for any purpose, but the samples must not be sold. "
        "https://github.com/sgossner/VSCO-2-CE",
        base=f"{GITHUB}/sgossner/VSCO-2-CE/HEAD/Brass/Trumpet/sus",
        exact=False,
    ),
    "guitar_shiny": Collection(
        "Shinyguitar by Karoryfer Samples, CC0. https://github.com/sfzinstruments/karoryfer.shinyguitar",
        base=f"{GITHUB}/sfzinstruments/karoryfer.shinyguitar/HEAD/Samples/acoustic",
        exact=False,
    ),
    "guitar_freepats": Collection(
        "Spanish classical guitar by FreePats, CC0. https://github.com/freepats/spanish-classical-guitar",
        base=f"{GITHUB}/freepats/spanish-classical-guitar/HEAD/samples",
    ),
}
INSTRUMENTS = {
    "trumpet": ("trumpet_philharmonia", "trumpet_vsco"),
    "guitar": ("guitar_shiny", "guitar_freepats"),
    "saxophone": ("saxophone_philharmonia",),
    "violin": ("violin_philharmonia",),
    "flute": ("flute_philharmonia",),
    "others": tuple(name for name in COLLECTIONS if name.startswith("others/")),
}


def download_samples(
    instrument: str, output_dir: Path, local_archives: tuple[Path, ...] = (), local_dir: Path | None = None
) -> dict[str, int]:
    """Bring the recordings of an instrument to ``output_dir/<instrument>/<collection>``; go on where it stopped.

    Args:
        instrument: a key of INSTRUMENTS.
        output_dir: archives stay in its folder ``archives``, for instruments share them.
        local_archives: zips that were fetched by hand, looked through before anything is downloaded.
        local_dir: a folder of recordings that were fetched by hand, likewise.

    Returns:
        number of files of each collection.

    Raises:
        DataError: a source cannot be reached, a file is damaged, or files are missing after all.
    """
    checksums, counts = read_checksums(), {}
    for name in INSTRUMENTS[instrument]:
        collection, expected = COLLECTIONS[name], checksums[name]
        folder = output_dir / instrument / name.removeprefix("others/")
        folder.mkdir(parents=True, exist_ok=True)
        log.info("%s: %d files. %s", name, len(expected), collection.licence)
        missing = find_missing(folder, expected)
        for path in (*local_archives, *([local_dir] if local_dir else [])):
            take_missing(read_recordings(path), folder, missing, collection.exact)
        if missing and collection.archive:
            archive = download_archive(collection.archive, output_dir / "archives")
            with deleting_damaged(archive):
                take_missing(read_recordings(archive), folder, missing, collection.exact)
            if missing:
                raise DataError(f"{folder} lacks {len(missing)} of {len(expected)} files, as {min(missing)}; {BY_HAND}")
        for file in tqdm(missing if collection.base else (), unit="file", disable=None):
            download_recording(collection, folder, file, missing[file])
        counts[name] = len(expected)
    return counts


def read_checksums(path: Path = CHECKSUMS) -> dict[str, dict[str, str]]:
    """Return collection -> file name -> first 32 digits of its sha256."""
    table: dict[str, dict[str, str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            table[line.strip("[]")] = files = {}
        elif line and not line.startswith("#"):
            digest, name = line.split(" ", 1)
            files[name] = digest
    return table


def hash_recording(data: bytes, name: str, exact: bool) -> str:
    """Return the first 32 digits of the sha256 of a file's bytes, or if not `exact` of its samples in 16 bits."""
    try:
        data = data if exact else sf.read(io.BytesIO(data), dtype="int16")[0].tobytes()
    except sf.LibsndfileError as error:
        raise DamagedDownloadError(f"{name} cannot be read as sound ({error.error_string.strip()})") from error
    return hashlib.sha256(data).hexdigest()[:32]


def check_recording(data: bytes, name: str, expected: str, exact: bool) -> None:
    """Compare the digits of a file with the expected ones; raise DamagedDownloadError if `exact`, else warn."""
    if hash_recording(data, name, exact) == expected:
        return
    if exact:
        raise DamagedDownloadError(f"{name} is damaged: its sha256 does not begin with {expected}; {BY_HAND}")
    log.warning("%s is not the recording that this project was made with, but will do", name)


def find_missing(folder: Path, expected: dict[str, str]) -> dict[str, str]:
    """Return what is expected in a folder but is not there, under its name or as wav."""
    return {
        name: digest
        for name, digest in expected.items()
        if not (folder / name).is_file() and not (folder / name).with_suffix(".wav").is_file()
    }


def read_recordings(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of the recordings in a folder or a zip, and in the zips there, one level deep."""
    with naming_damage(path):
        yield from _read_sounds(read_members(path), (*SOUNDS, ".zip"))


def _read_sounds(members: Iterable[Member], suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for name, size, open_member in members:
        if name.lower().endswith(suffixes):
            if size > LARGEST:
                raise DataError(f"{name!r} is refused: it would unpack to {size} bytes")
            with open_member() as stream:
                data = stream.read()
            if name.lower().endswith(".zip"):
                yield from _read_sounds(read_zip(io.BytesIO(data)), SOUNDS)
            else:
                yield Path(name).name, data


def take_missing(found: Iterable[tuple[str, bytes]], folder: Path, missing: dict[str, str], exact: bool) -> None:
    """Write those of the found files that are missing, and take them off `missing`."""
    stems = {Path(name).stem: name for name in missing}
    for name, data in found if missing else ():
        stem = local_stem(Path(name).stem)
        if stem in stems and not (exact and name != stems[stem]):
            check_recording(data, name, missing.pop(stems.pop(stem)), exact)
            with atomic_write(folder / f"{stem}{Path(name).suffix.lower()}") as part:
                part.write_bytes(data)
        if not missing:
            break


def local_stem(stem: str) -> str:
    """Return the name here of a file's published stem: VSCO 2 has ``Sum_SHTrumpet_sus_A#3_v1_rr1``."""
    if not stem.startswith("Sum_SHTrumpet_sus_"):
        return stem
    note, layer = stem.split("_")[3:5]
    return f"sus_{layer}_{'f' if layer == 'v3' else 'p'}_{note.lower().replace('#', 'sharp')}"


def published_name(collection: Collection, name: str) -> str:
    """Return the published name of a file that is called `name` here."""
    stem = Path(name).stem
    if collection.exact:
        return name
    if not stem.startswith("sus_"):
        return f"{stem}.wav"
    _, layer, _, note = stem.split("_")
    return f"Sum_SHTrumpet_sus_{note[0].upper()}{note[1:].replace('sharp', '#')}_{layer}_rr1.wav"


def download_archive(name: str, folder: Path) -> Path:
    """Return an archive of the orchestra, downloaded to `folder` unless it is there already."""
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        source = DownloadSource(f"{ORCHESTRA}/{name}", name, ratio=1.0, manual_hint=BY_HAND)
        download(source, path, lambda part: None)  # its recordings are checked, one by one
        log.info("%s stays for the other instruments in it; delete it when you have all", path)
    return path


def download_recording(collection: Collection, folder: Path, name: str, expected: str) -> None:
    """Download the recording that is called `name` here and check it."""
    published = published_name(collection, name)
    path = folder / f"{Path(name).stem}{Path(published).suffix}"
    source = DownloadSource(f"{collection.base}/{quote(published)}", path.name, manual_hint=BY_HAND)
    download(source, path, lambda part: check_recording(part.read_bytes(), published, expected, collection.exact))
