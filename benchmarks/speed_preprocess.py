"""The row of ``benchmark.py`` that measures preprocess.py, run as users run it."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile


def measure_preprocessing(minutes: float, num_workers: int) -> dict[str, float]:
    """Let preprocess.py measure notes in files of half a minute; its start is part of the time.

    Returns:
        Minutes of sound, workers, seconds taken, and hours of sound an hour.
    """
    root, n_files = Path(__file__).parents[1], max(1, round(2 * minutes))
    time_axis = np.arange(30 * 44100) / 44100
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        for number in range(n_files):
            tone = sum(np.sin(2 * np.pi * (200 + 20 * number) * k * time_axis) / k for k in range(1, 6))
            (Path(folder) / "raw").mkdir(exist_ok=True)
            soundfile.write(Path(folder) / "raw" / f"{number}.wav", 0.2 * tone * (time_axis % 2 < 1.6), 44100)
        command = [sys.executable, root / "preprocess.py", "--instrument", "trumpet", "--num_workers", str(num_workers)]
        flags = ["--input_dir", f"{folder}/raw", "--output_dir", f"{folder}/pt"]
        started = time.perf_counter()
        subprocess.run([*command, *flags], capture_output=True, check=True)
        seconds = time.perf_counter() - started
    return {"minutes": n_files / 2, "workers": num_workers, "seconds": seconds, "hours_an_hour": 30 * n_files / seconds}
