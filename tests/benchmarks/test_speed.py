"""The benchmark compares equal work, in turns, and takes its ratios from one run. No test here asserts on the clock."""

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch

import speed as bm

MINIATURE = ["--batch_size", "2", "--crop_seconds", "0.1", "--render_seconds", "0.2", "--threads", "1"]

# Imported by the script, from its own folder.
benchmark_parts, benchmark_peers = (sys.modules[name] for name in ("speed_parts", "speed_peers"))
on_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")


@pytest.fixture(scope="module", autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "new" / "benchmark.json"
    assert bm.main([*MINIATURE, "--quick", "--rounds", "3", "--json", str(path)]) == 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no half file beside it
    return json.loads(path.read_text())


@pytest.fixture
def fake_part():
    """Return a function that makes a part of given work."""

    def make(works, **goals):
        return bm.Part("fake", "fake work", "other work", lambda load: works, **{"goal": 3, **goals})

    return make


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances only when told to."""
    now = [0.0]
    monkeypatch.setattr(bm.time, "perf_counter", lambda: now[0])

    def advance(seconds):
        now[0] += seconds
        return torch.zeros(1)

    return advance


def test_report_describes_machine_and_workload(report):
    assert set(report["machine"]) == {"cpu", "cores", "threads", "load", "system", "python", "torch", "date"}
    assert report["machine"]["cpu"] and report["machine"]["threads"] == 1
    assert report["workload"] == {"config_name": "tiny", "batch_size": 2, "crop_seconds": 0.1, "render_seconds": 0.2}
    measurable = [part.key for part in bm.PARTS if not bm.benchmark_peers.find_missing(part)]
    assert [part["key"] for part in report["parts"]] == measurable


def test_ratios_come_from_the_rounds_of_the_same_run(report):
    for part in report["parts"]:
        ours, theirs = (part["seconds"][name]["rounds"] for name in ("ours", "reference"))
        assert len(ours) == len(theirs) == report["n_rounds"] == 3
        assert min(ours + theirs) > 0
        ratios = [b / a for a, b in zip(ours, theirs)]
        assert part["ratio"] == {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        assert part["seconds"]["ours"]["median"] == statistics.median(ours)


def test_floor_is_beside_step_and_inference(report):
    floored = [part for part in report["parts"] if "over_floor" in part]
    assert [part["key"] for part in floored] == ["step", "inference"]
    for part in floored:
        ours, floor = (part["seconds"][name]["rounds"] for name in ("ours", "floor"))
        assert part["over_floor"]["median"] == statistics.median(a / b for a, b in zip(ours, floor))


# The largest difference that rounding makes here, absolute; measured values are in brackets, and 3 to 10 times below.
ROUNDING = {
    "bank": 1e-4,  # the textbook sums its phase in float32, and harmonic 101 has 101 times its error (4e-5 of 0.2)
    "noise": 2e-6,  # float32 transforms (3e-7 of 0.7)
    "loss": 5e-6,  # float32 sums (1e-7 of 1.4)
    "decoder": 2e-7,  # float32 sums of 512 products (2e-8 of 0.1)
    "step": 3e-4,  # of the bank, in the loss (7e-5 of 3.7)
    "textbook_step": 3e-4,
    "inference": 5e-4,  # of the bank, after twice the time (2e-4 of 0.4)
    "auraloss": 2e-3,  # it takes the spectral convergence of the whole batch, not of each item (1e-3 of 1)
    "crepe_tiny": 4e-6,  # ours multiplies transforms (4e-7 of 0.4)
    "crepe_full": 4e-6,
    "viterbi": 0,  # the same path
}


def test_both_variants_do_the_same(report):
    for part in report["parts"]:
        assert part["difference"] <= ROUNDING[part["key"]], part["key"]


def test_the_searches_find_the_same_path_through_a_melody(monkeypatch):
    """The report's 0.2 s are the rest that the hum begins with, in which any path is as good as another.

    From a rest on torchcrepe's stays at the edge of the range for seconds, see ``pitch._best_path``.
    """
    hum = benchmark_peers.read_voice(2.0)[int(0.9 * 16000) :]
    monkeypatch.setattr(benchmark_peers, "read_voice", lambda seconds: hum)
    works = benchmark_peers.build_search(bm.Workload())
    ours, theirs = works["ours"](), works["reference"]()
    assert torch.equal(ours, theirs) and (ours > 0).sum() > 90


def test_the_reference_is_the_textbook(config, monkeypatch):
    calls = []
    silent = lambda f0, *rest: calls.append(1) or torch.zeros(len(f0), 1600)  # noqa: E731
    monkeypatch.setattr(benchmark_parts.textbook, "harmonic_bank", silent)
    load = bm.Workload(batch_size=1, crop_seconds=0.1, render_seconds=0.1)
    for build in (benchmark_parts.build_step, benchmark_parts.build_inference):
        works = build(load)
        works["ours"]()
        assert not calls
        works["reference"]()
        assert calls.pop()


def test_the_textbook_step_has_nothing_of_ours(monkeypatch):
    calls = []
    plain = benchmark_parts.textbook.stft_loss
    monkeypatch.setattr(benchmark_parts.textbook, "stft_loss", lambda *rest: calls.append("loss") or plain(*rest))
    bank = benchmark_parts.textbook.harmonic_bank
    monkeypatch.setattr(benchmark_parts.textbook, "harmonic_bank", lambda *rest: calls.append("bank") or bank(*rest))
    gru = benchmark_parts.PlainGru.forward
    monkeypatch.setattr(benchmark_parts.PlainGru, "forward", lambda *rest: calls.append("gru") or gru(*rest))
    works = benchmark_parts.build_textbook_step(bm.Workload(batch_size=1, crop_seconds=0.1))
    works["ours"]()
    assert not calls
    works["reference"]()
    assert calls == ["gru", "bank", "loss"]


def test_the_floor_is_judged_by_how_far_above_it_we_are(clock):
    works = {"ours": lambda: clock(1.5), "reference": lambda: clock(3.0), "floor": lambda: clock(1.0)}
    for most, met in ((1.4, False), (1.5, True)):
        part = bm.Part("fake", "fake work", "other work", lambda load: works, floor_goal=most)
        result = bm.measure(part, bm.Workload(), 2)
        assert (result["floor_goal_met"], result["goal_met"]) == (met, None)


def test_goals_are_judged_at_their_own_size_only(report):
    assert all(part["goal_met"] is None for part in report["parts"])


@on_linux
def test_memory_is_measured_in_fresh_processes(report, tmp_path):
    assert not any("bytes" in part for part in report["parts"])  # --quick leaves it out
    path = tmp_path / "benchmark.json"
    assert bm.main([*MINIATURE, "--rounds", "1", "--only", "crepe_tiny", "--json", str(path)]) == 0
    (part,) = json.loads(path.read_text())["parts"]
    assert part["memory_ratio"] == max(part["bytes"]["reference"], 2**20) / max(part["bytes"]["ours"], 2**20)
    assert part["bytes_over_imports"]["ours"] > part["bytes"]["ours"]  # the network is more
    assert part["imports_goal"] == 100 and part["imports_goal_met"] is None


def test_without_auraloss_a_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "auraloss", None)
    assert bm.main([*MINIATURE, "--quick", "--only", "auraloss"]) == 0
    assert "./venv/bin/python -m pip install auraloss" in capsys.readouterr().out


def test_a_long_part_has_fewer_rounds(fake_part, clock):
    works = {"ours": lambda: clock(1.0), "reference": lambda: clock(4.0)}
    for budget, n_rounds in ((4.0, 1), (9.0, 2), (100.0, 3)):
        result = bm.measure(fake_part(works), bm.Workload(), 3, budget)
        assert len(result["seconds"]["ours"]["rounds"]) == n_rounds


@on_linux
def test_growth_is_the_peak_not_what_is_left(fake_part):
    mebibytes = 2**20

    def work():
        torch.ones(256 * mebibytes, dtype=torch.uint8)  # freed on return; more than an allocator keeps
        return torch.zeros(1)

    grown, over_imports = bm.grow(fake_part({"ours": work}), "ours", bm.Workload())
    assert 250 * mebibytes < grown < 270 * mebibytes
    assert over_imports >= 250 * mebibytes


def test_variants_take_turns(fake_part):
    order = []
    works = {name: lambda name=name: order.append(name) or torch.zeros(1) for name in ("ours", "reference", "floor")}
    bm.measure(fake_part(works), bm.Workload(), 3)
    assert order == ["ours", "reference", "floor"] * 4  # the first turn warms up


@pytest.mark.parametrize("goal, met", [(3, True), (3.01, False)])
def test_ratio_and_verdict(fake_part, clock, goal, met):
    works = {"ours": lambda: clock(1.0), "reference": lambda: clock(3.0), "floor": lambda: clock(0.5)}
    result = bm.measure(fake_part(works, goal=goal), bm.Workload(), 2)
    assert result["ratio"] == {"median": 3.0, "min": 3.0, "max": 3.0}
    assert result["over_floor"]["median"] == 2.0
    assert result["goal_met"] is met


def test_neighbours_are_compared_when_the_machine_slows_down(fake_part, clock):
    """It slows down tenfold in the middle of the second round: the ratio of the medians would be 40."""
    pace = {"ours": iter([1, 1, 1, 10]), "reference": iter([1, 1, 10, 10])}
    works = {"ours": lambda: clock(next(pace["ours"])), "reference": lambda: clock(4 * next(pace["reference"]))}
    result = bm.measure(fake_part(works, goal=5), bm.Workload(), 3)
    assert result["ratio"] == {"median": 4.0, "min": 4.0, "max": 40.0}
    assert result["goal_met"] is False  # the median counts
    assert result["seconds"]["ours"]["max"] == 10.0


def test_table_shows_every_figure(fake_part, clock):
    works = {"ours": lambda: clock(0.1), "reference": lambda: clock(0.25), "floor": lambda: clock(0.05)}
    result = bm.measure(fake_part(works), bm.Workload(), 2)
    memory = {"bytes": {"ours": 2**20, "reference": 7 * 2**20}, "memory_ratio": 7.0, "memory_goal": 3}
    memory |= {"bytes_over_imports": {"ours": 2e8, "reference": 7e8}, "imports_goal": 500, "imports_goal_met": True}
    machine = {"cpu": "A CPU", "threads": 2, "cores": 4, "torch": "2", "date": "2030-01-02T03:04:05"}
    workload = {"config_name": "tiny", "batch_size": 16, "crop_seconds": 1.0, "render_seconds": 10.0}
    parts = [{**result, **memory, "memory_goal_met": True}]
    table = bm.format_table({"machine": machine, "workload": workload, "n_rounds": 2, "parts": parts, "missing": []})
    head, _, _, _, _, speed, memory, imports, floor = table.splitlines()
    assert "A CPU" in head and "2030-01-02" in head
    for text in ("fake work", "100 ms", "250 ms", "other work", "2.5 x faster", "3 x: NOT met"):
        assert text in speed
    for text in ("1 MiB", "7 MiB", "7.0 x less", "3 x: met"):
        assert text in memory
    for text in ("200 MB", "700 MB", "500 MB: met"):
        assert text in imports
    assert "50 ms" in floor and "2.00 x" in floor


def test_curves_cover_the_range(config):
    f0, loudness = benchmark_parts.make_curves(16, 1.0, config)
    assert f0.shape == loudness.shape == (16, 100, 1)
    assert f0.min() < 200 and f0.max() > 500
    single, _ = benchmark_parts.make_curves(1, 10.0, config)
    assert single.shape == (1, 1000, 1) and single.max() > 2 * single.min()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--batch_size", "-1"], "--batch_size must be at least 1"),
        (["--crop_seconds", "0"], "must be at least 0.05"),
        (["--only", "everything"], "invalid choice"),
    ],
)
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        bm.main(flags)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_unknown_preset_is_one_sentence(caplog):
    assert bm.main(["--config_name", "huge"]) == 1
    assert "unknown preset 'huge'" in caplog.text and "Traceback" not in caplog.text


def test_json_that_cannot_be_written(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(bm, "PARTS", ())
    assert bm.main(["--quick", "--threads", "1", "--json", str(tmp_path / "file" / "out.json")]) == 1
    assert "benchmark.py:" in caplog.text


def test_preprocessing_is_measured():
    found = bm.measure_preprocessing(0.5, 1)
    assert found["minutes"] == 0.5 and found["hours_an_hour"] == pytest.approx(30 / found["seconds"])
    line = bm._preprocessing_line({"preprocessing": found | {"hours_an_hour": 7.25, "seconds": 4.1}})
    assert line == ["preprocess.py: 7.2 hours of sound an hour (0.5 min in 4 s, 1 workers)"]
