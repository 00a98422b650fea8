"""The benchmark of a GPU, on a CPU: what it compares is the same work, and where there is no GPU it says so."""

import json

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

import gpu as benchmark_gpu
from config import load_config
from speed_parts import Workload, build_models
from training.optimization import compilable_layers

MINIATURE = ["--device", "cpu", "--rounds", "2", "--batch_size", "2", "--crop_seconds", "0.1", "--voice_seconds", "0.1"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "gpu.json"
    assert benchmark_gpu.main([*MINIATURE, "--presets", "tiny", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_each_variant_has_a_row_beside_the_textbook(report):
    assert [(row["variant"]["precision"], row["variant"]["compiled"]) for row in report["steps"]] == [
        ("float32", False),
        ("bfloat16", False),
    ]
    for row in report["steps"]:
        assert row["samples_a_second"] == pytest.approx(2 * 1600 / row["seconds"]["ours"]["median"])
        assert row["bytes"] == {"ours": None, "reference": None}  # there is no GPU whose memory it would be


def test_the_first_step_has_the_loss_of_the_textbook(report):
    """It is about 9; the textbook's phase drifts, and in bfloat16 products are rounded to 3 digits."""
    single, half = (row["difference"] for row in report["steps"])
    assert max(single, half) < 5e-4 and single != half


def test_crepe_is_torchcrepe(report):
    assert [row["key"] for row in report["crepe"]] == ["tiny", "full"]
    assert all(row["difference"] < 1e-5 for row in report["crepe"])


def test_only_what_can_be_compiled_is_compiled():
    ways = {(each.preset, each.compiled) for each in benchmark_gpu.list_variants(["tiny", "solo"])}
    assert ways == {("tiny", False), ("solo", False), ("solo", True)}


def test_a_compiled_variant_compiles_its_layers(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: compiled.append(type(layer)))
    benchmark_gpu.Variant("solo", compiled=True).build(Workload(batch_size=1, crop_seconds=0.1), torch.device("cpu"))
    model = build_models(load_config(preset="solo"))["ours"]
    assert compiled == [type(layer) for layer in compilable_layers(model)] != []


def test_the_table_is_markdown(report):
    lines = benchmark_gpu.format_report(report).splitlines()
    tables = [[line for line in lines if line.startswith("|") and line.count("|") == n] for n in (9, 6)]
    assert [len(table) for table in tables] == [4, 4]
    assert tables[0][2].startswith("| tiny | float32 | no |") and tables[0][2].endswith("| - |")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [(["--device", "cuda:99"], "cannot be used here"), ([*MINIATURE, "--presets", "nix"], "unknown preset 'nix'")],
)
def test_what_cannot_be_measured_is_said(flags, sentence, caplog):
    assert benchmark_gpu.main(flags) == 1
    assert sentence in caplog.text


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--batch_size", "0"], ["--crop_seconds", "0"]])
def test_nothing_to_measure_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark_gpu.parse_args(flags)
    assert stop.value.code == 2 and "at least" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, InvalidCxxCompiler])
def test_what_a_machine_cannot_do_is_left_out(kind, monkeypatch, caplog):
    def fail(variant, *_):
        if variant.precision == "bfloat16":
            raise kind() if kind is InvalidCxxCompiler else kind("CUDA out of memory.")
        return variant

    monkeypatch.setattr(benchmark_gpu, "measure_step", fail)
    assert benchmark_gpu.measure_steps(["tiny"], Workload(), torch.device("cpu"), 1) == [benchmark_gpu.Variant("tiny")]
    assert caplog.text.count("is left out: ") == 1 and "Traceback" not in caplog.text
    monkeypatch.setattr(benchmark_gpu, "measure_step", lambda *_: 1 + torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        benchmark_gpu.measure_steps(["tiny"], Workload(), torch.device("cpu"), 1)
