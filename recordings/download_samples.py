"""Fetch sampled real instruments from their public sources, check each file, and put them into folders by collection.

``sample_checksums.txt`` lists what belongs to a collection: file name and the first 32 digits of its sha256. Files of
the orchestra and of FreePats are the published ones, byte for byte. Those of Shinyguitar and VSCO 2 are published as
wav; there the digits are those of the 16-bit samples, and a file that differs is used, but named.
"""

import hashlib
import io
import logging
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import soundfile as sf
from tqdm import tqdm

from recordings.archives import deleting_damaged
from recordings.resumable_download import (
    ArchiveSource,
    DamagedDownloadError,
    DataError,
    RetryPolicy,
    download_resumable,
    require_space,
)
from sound.atomic_files import atomic_write

log = logging.getLogger(__name__)

CHECKSUMS = Path(__file__).with_name("sample_checksums.txt")
LARGEST = 1 << 30  # bytes of an archive inside an archive, and of a recording
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
    instrument: str,
    output_dir: Path,
    local_archives: tuple[Path, ...] = (),
    local_dir: Path | None = None,
    patience: RetryPolicy | None = None,
) -> dict[str, int]:
    """Bring the recordings of an instrument to ``output_dir/<instrument>/<collection>``; go on where it stopped.

    Args:
        instrument: a key of INSTRUMENTS.
        output_dir: archives stay in its folder ``archives``, for instruments share them.
        local_archives: zips that were fetched by hand, looked through before anything is downloaded.
        local_dir: a folder of recordings that were fetched by hand, likewise.
        patience: with a server that fails.

    Returns:
        number of files of each collection.

    Raises:
        DataError: a source cannot be reached, a file is damaged, or files are missing after all.
    """
    checksums, counts = read_checksums(), {}
    for name in INSTRUMENTS[instrument]:
        collection, expected = COLLECTIONS[name], checksums[name]
        folder = output_dir / instrument / name.removeprefix("others/")
        log.info("%s: %d files. %s", name, len(expected), collection.licence)
        missing = find_missing(folder, expected)
        for archive in local_archives:
            missing = _take(read_archive(archive), folder, missing, collection.exact)
        if local_dir and missing:
            missing = _take(_read_folder(local_dir), folder, missing, collection.exact)
        if missing and collection.archive:
            archive = _fetch_archive(collection.archive, output_dir / "archives", patience or RetryPolicy())
            with deleting_damaged(archive):
                missing = _take(read_archive(archive), folder, missing, collection.exact)
        elif missing:
            missing = _fetch_files(collection, folder, missing, patience or RetryPolicy())
        if missing:
            raise DataError(
                f"{folder} lacks {len(missing)} of {len(expected)} files, {min(missing)} for one; {_by_hand()}"
            )
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
    if not exact:
        try:
            data = sf.read(io.BytesIO(data), dtype="int16")[0].tobytes()
        except sf.LibsndfileError as error:
            raise DamagedDownloadError(f"{name} cannot be read as sound ({error.error_string.strip()})") from error
    return hashlib.sha256(data).hexdigest()[:32]


def find_missing(folder: Path, expected: dict[str, str]) -> dict[str, str]:
    """Return what is expected in a folder but is not there, under its name or as wav."""
    return {
        name: digest
        for name, digest in expected.items()
        if not (folder / name).is_file() and not (folder / name).with_suffix(".wav").is_file()
    }


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of the recordings in a zip and in the zips inside it, one level deep."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _read_members(archive, path, is_inner=False)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DamagedDownloadError(f"{path} cannot be unpacked: {error}") from error


def _read_members(archive: zipfile.ZipFile, path: Path, is_inner: bool) -> Iterator[tuple[str, bytes]]:
    for member in archive.infolist():
        suffix = Path(member.filename).suffix.lower()
        if member.is_dir() or suffix not in (".zip", ".mp3", ".flac", ".wav"):
            continue
        if member.file_size > LARGEST:
            raise DataError(f"{path} is refused: {member.filename} would unpack to {member.file_size} bytes")
        if suffix != ".zip":
            yield Path(member.filename).name, archive.read(member)
        elif not is_inner:
            with zipfile.ZipFile(io.BytesIO(archive.read(member))) as inner:
                yield from _read_members(inner, path, is_inner=True)


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".mp3", ".flac", ".wav") and path.is_file():
            yield path.name, path.read_bytes()


def _take(found: Iterator[tuple[str, bytes]], folder: Path, missing: dict[str, str], exact: bool) -> dict[str, str]:
    """Write those of the found files that are missing, and return what still is."""
    missing = dict(missing)
    stems = {Path(name).stem: name for name in missing}
    for name, data in found:
        stem = local_stem(Path(name).stem)
        if stem in stems and not (exact and name != stems[stem]):
            _check(data, name, missing.pop(stems.pop(stem)), exact)
            _write(folder / f"{stem}{Path(name).suffix.lower()}", data)
        if not missing:
            break
    return missing


def _check(data: bytes, name: str, expected: str, exact: bool) -> None:
    if hash_recording(data, name, exact) == expected:
        return
    if exact:
        raise DamagedDownloadError(f"{name} is damaged: its sha256 does not begin with {expected}; {_by_hand()}")
    log.warning("%s is not the recording that this project was made with, but will do", name)


def _write(path: Path, data: bytes) -> None:
    require_space(path.parent, len(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_bytes(data)


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


def _fetch_archive(name: str, folder: Path, patience: RetryPolicy) -> Path:
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = download_resumable(ArchiveSource(f"{ORCHESTRA}/{name}", name, None, 1.0, _by_hand()), path, patience)
        part.path.replace(path)
        part.notes_path.unlink(missing_ok=True)
        log.info("%s stays for the other instruments in it; delete it when you have all", path)
    return path


def _fetch_files(
    collection: Collection, folder: Path, missing: dict[str, str], patience: RetryPolicy
) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in tqdm(sorted(missing.items()), unit="file", disable=None):
        published = published_name(collection, name)
        path = folder / f"{Path(name).stem}{Path(published).suffix}"
        part = download_resumable(
            ArchiveSource(f"{collection.base}/{quote(published)}", path.name, None, 0.0, _by_hand()), path, patience
        )
        try:
            _check(part.path.read_bytes(), published, digest, collection.exact)
        except DamagedDownloadError:
            part.start_over()
            part.notes_path.unlink(missing_ok=True)
            raise
        shutil.move(part.path, path)
        part.notes_path.unlink(missing_ok=True)
    return {}


def _by_hand() -> str:
    return "fetch it by hand from the address beside the licence, and name it by --local_archive or --local_dir"
