"""Download sampled instruments from their public sources, check each file, and store them by collection.

``sample_checksums.txt`` lists the files of each collection: name and the first 32 digits of the sha256. For the
Philharmonia Orchestra and FreePats, it is the sha256 of the published file. Shinyguitar and VSCO 2 publish wav files;
there it is the sha256 of the 16-bit samples, and a file that differs is used with a warning.
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
BY_HAND = "download it in a browser from the address after the licence, and give --local_archive or --local_dir"
ORCHESTRA = "https://philharmonia-assets.s3-eu-west-1.amazonaws.com/uploads/2020/02/12112005"
ORCHESTRA_PAGE = "https://philharmonia.co.uk/resources/sound-samples"
GITHUB = "https://raw.githubusercontent.com"
ORCHESTRA_LICENCE = (
    "Philharmonia Orchestra sound samples, CC BY-SA 3.0; must not be sold or made available as samples or as a "
    f"sampler instrument. {ORCHESTRA_PAGE}"
)


@dataclass(frozen=True)
class Collection:
    """Source of the files of one folder."""

    licence: str
    archive: str = ""  # a zip below ORCHESTRA, which may hold further zips
    base: str = ""  # or the base URL of the single files
    exact: bool = True  # checksums of the published bytes; False: of the 16-bit samples


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
    """Download the missing recordings of an instrument to ``output_dir/<instrument>/<collection>``.

    Args:
        instrument: a key of INSTRUMENTS.
        output_dir: archives stay in its folder ``archives``, because instruments share them.
        local_archives: zips that the user has downloaded, searched before any download.
        local_dir: folder of recordings that the user has downloaded, also searched before any download.

    Returns:
        Number of files by collection.

    Raises:
        DataError: a source cannot be reached, a file is damaged, or the sources lack a file.
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
                raise DataError(
                    f"{folder} lacks {len(missing)} of {len(expected)} files, such as {min(missing)}; {BY_HAND}"
                )
        for file in tqdm(missing if collection.base else (), unit="file", disable=None):
            download_recording(collection, folder, file, missing[file])
        counts[name] = len(expected)
    return counts


def read_checksums(path: Path = CHECKSUMS) -> dict[str, dict[str, str]]:
    """Return {collection: {file name: first 32 digits of its sha256}}."""
    table: dict[str, dict[str, str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            table[line.strip("[]")] = files = {}
        elif line and not line.startswith("#"):
            digest, name = line.split(" ", 1)
            files[name] = digest
    return table


def hash_recording(data: bytes, name: str, exact: bool) -> str:
    """Return the first 32 digits of the sha256 of a file's bytes if `exact`, else of its 16-bit samples."""
    try:
        data = data if exact else sf.read(io.BytesIO(data), dtype="int16")[0].tobytes()
    except sf.LibsndfileError as error:
        raise DamagedDownloadError(f"{name} cannot be read as sound ({error.error_string.strip()})") from error
    return hashlib.sha256(data).hexdigest()[:32]


def check_recording(data: bytes, name: str, expected: str, exact: bool) -> None:
    """Compare a file's digest with the expected one; on a mismatch raise DamagedDownloadError if `exact`, else warn."""
    if hash_recording(data, name, exact) == expected:
        return
    if exact:
        raise DamagedDownloadError(f"{name} is damaged: its sha256 does not begin with {expected}; {BY_HAND}")
    log.warning("%s is not the recording that this project was developed with; it is used anyway", name)


def find_missing(folder: Path, expected: dict[str, str]) -> dict[str, str]:
    """Return the expected files that a folder lacks, under their name and as wav."""
    return {
        name: digest
        for name, digest in expected.items()
        if not (folder / name).is_file() and not (folder / name).with_suffix(".wav").is_file()
    }


def read_recordings(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of the recordings in a folder or zip, and in zips inside it, one level deep."""
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
    """Write the found files that are missing to `folder`, and remove them from `missing`."""
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
    """Return the local stem of a published one, such as ``Sum_SHTrumpet_sus_A#3_v1_rr1`` of VSCO 2."""
    if not stem.startswith("Sum_SHTrumpet_sus_"):
        return stem
    note, layer = stem.split("_")[3:5]
    return f"sus_{layer}_{'f' if layer == 'v3' else 'p'}_{note.lower().replace('#', 'sharp')}"


def published_name(collection: Collection, name: str) -> str:
    """Return the published name of the file with the local name `name`."""
    stem = Path(name).stem
    if collection.exact:
        return name
    if not stem.startswith("sus_"):
        return f"{stem}.wav"
    _, layer, _, note = stem.split("_")
    return f"Sum_SHTrumpet_sus_{note[0].upper()}{note[1:].replace('sharp', '#')}_{layer}_rr1.wav"


def download_archive(name: str, folder: Path) -> Path:
    """Return the path of an archive of the orchestra in `folder`; download it if it is missing."""
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        source = DownloadSource(f"{ORCHESTRA}/{name}", name, ratio=1.0, manual_hint=BY_HAND)
        download(source, path, lambda part: None)  # each recording in it is checked later
        log.info("%s is kept for its other instruments; delete it when you have them all", path)
    return path


def download_recording(collection: Collection, folder: Path, name: str, expected: str) -> None:
    """Download the recording with the local name `name` and check it."""
    published = published_name(collection, name)
    path = folder / f"{Path(name).stem}{Path(published).suffix}"
    source = DownloadSource(f"{collection.base}/{quote(published)}", path.name, manual_hint=BY_HAND)
    download(source, path, lambda part: check_recording(part.read_bytes(), published, expected, collection.exact))
