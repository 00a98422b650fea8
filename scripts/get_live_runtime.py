"""Download the three files of onnxruntime-web that the live page needs to web/live/vendor/.

    ./venv/bin/python scripts/get_live_runtime.py
    ./venv/bin/python scripts/get_live_runtime.py --source onnxruntime-web-1.30.0.tgz

Without --source, npm downloads the package from its configured registry. Each file must have the sha256 in
web/live/worker.js. Without these files, the page loads them from a public address.
"""

import argparse
import base64
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from sound.atomic_files import atomic_write
from sound.console import as_command, command_parser, suggest

PAGE_DIR = Path(__file__).resolve().parents[1] / "web" / "live"


def read_pins() -> tuple[str, dict[str, bytes]]:
    """Return the version of onnxruntime-web and {file: sha256} from the page."""
    text = (PAGE_DIR / "worker.js").read_text(encoding="utf-8")
    files = re.findall(r'"([\w.-]+)": "sha256-([\w+/=]+)"', text)
    return re.search(r'VERSION = "([\d.]+)"', text)[1], {name: base64.b64decode(digest) for name, digest in files}


def fetch_package(version: str, folder: Path) -> Path:
    """Download the package to a folder with npm, and return its path.

    Raises:
        ValueError: npm is missing or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("npm is not installed; install it, or give a downloaded package as --source")
    command = [npm, "pack", "--silent", f"onnxruntime-web@{version}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError("npm took longer than ten minutes; try again, or give --source") from error
    packages = list(folder.glob("*.tgz"))
    if done.returncode or not packages:
        raise ValueError(f"npm could not download onnxruntime-web {version}: {done.stderr.strip()[-300:]}")
    return packages[0]


def unpack(package: Path, files: dict[str, bytes], target: Path) -> None:
    """Write the files of a package (.tgz) to a folder.

    Raises:
        ValueError: it is not the package, or a file does not have the expected sha256.
    """
    contents = {}
    try:
        with tarfile.open(package) as archive:
            for name in files:
                contents[name] = archive.extractfile(f"package/dist/{name}").read()
    except (tarfile.TarError, KeyError, AttributeError, EOFError) as error:
        raise ValueError(f"{package} is not the package onnxruntime-web ({error})") from error
    for name, content in contents.items():
        if hashlib.sha256(content).digest() != files[name]:
            raise ValueError(f"{name} in {package} does not have the sha256 that web/live/worker.js expects")
    for name, content in contents.items():
        with atomic_write(target / name) as path:
            path.write_bytes(content)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser("Download the runtime of the live page.")
    parser.add_argument("--source", type=Path, help="package onnxruntime-web (.tgz) on disk, instead of a download")
    parser.add_argument("--output", type=Path, default=PAGE_DIR / "vendor", help="folder (default: web/live/vendor)")
    return parser.parse_args(argv)


@as_command()
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    version, files = read_pins()
    kept = [args.output / name for name in files]
    if all(path.is_file() and hashlib.sha256(path.read_bytes()).digest() == files[path.name] for path in kept):
        print(f"{args.output} is up to date")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        unpack(args.source or fetch_package(version, Path(folder)), files, args.output)
    print(f"{args.output}: onnxruntime-web {version}, {sum(path.stat().st_size for path in kept) / 1e6:.1f} MB")
    suggest("app.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
