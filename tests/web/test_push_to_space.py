"""scripts/push_to_space.py with the real client, against a Hub on loopback."""

import subprocess
import sys
from pathlib import Path

import pytest

import push_to_space as space
from hub_server import Fault

ROOT = Path(__file__).parents[2]
NAME = "user/vox2trumpet"
FRONT_MATTER = "---\ntitle: Vox2Trumpet\nsdk: gradio\nsdk_version: 6.31.0\napp_file: app.py\n---\n\n"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own

FILES = {
    "app.py": "import os\nfrom transfer import play\nfrom web import page\n\ndef main():\n    import late\n",
    "transfer.py": "import config, numpy as np\nimport sound.files\n",
    "sound/__init__.py": "",
    "sound/files.py": "import os\n",
    "web/__init__.py": "",
    "web/page.py": "from sound.files import nothing\n",
    "web/page.css": "body {}",
    "web/live/index.html": "<p>",
    "config.py": "",
    "late.py": "from . import nothing\n",
    "train.py": "import config\n",
    "config.json": "{}",
    "requirements.txt": "gradio\n",
    "README.md": FRONT_MATTER + "# Hello\n",
    "LICENSE": "MIT",
    "checkpoints/pretrained/trumpet.pth": "weights",
    "checkpoints/pretrained/trumpet.md": "card",
    "examples/hum.wav": "RIFF",
    "examples/hum_trumpet.ogg": "Ogg",
}
SECRETS = {
    ".env": "HF_TOKEN=hf_secret",
    "token": "hf_secret",
    "train_secrets.py": "KEY = 'hf_secret'",
    "sound/unused.py": "mine",
    "web/notes.txt": "mine",
    "checkpoints/latest.pth": "mine",
    "checkpoints/best.pth": "mine",
    "checkpoints/pretrained/anna.pth": "mine",
    "checkpoints/pretrained/anna.md": "mine",
    "checkpoints/pretrained/.hidden.pth": "mine",
    "checkpoints/pretrained/sub/old.pth": "mine",
    "data/processed/a.wav.pt": "data",
    "data/raw/a.wav": "data",
    "examples/notes.txt": "mine",
    "examples/.voice.wav": "mine",
    "examples/take.wav": "mine",
    "examples/hum_anna.ogg": "mine",
    "examples/take.mid": "mine",
    "runs/a/metrics.jsonl": "mine",
    "wandb/settings": "mine",
    "venv/lib/gradio.py": "package",
    ".git/config": "url = https://hf_secret@host",
    "tests/test_app.py": "",
    "out/voice.wav": "mine",
}


@pytest.fixture
def project(tmp_path):
    """A small project with everything that must not leave it."""
    for name, content in (FILES | SECRETS).items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "project"


def push(project, *flags):
    return space.main(["--repo_id", NAME, *flags], root=project)


def files_of(hub):
    files = hub.repos["space", NAME].files
    return {path: blob.content.decode() for path, blob in files.items() if path != ".gitattributes"}


def test_only_files_of_the_page_are_uploaded(hub, project, capsys):
    assert push(project) == 0
    assert files_of(hub) == {name: content for name, content in FILES.items() if name != "train.py"}
    repo = hub.repos["space", NAME]
    assert repo.sdk == "gradio" and repo.private and repo.messages == ["new", "Update the page"]
    assert hub.cards[-1]["app_file"] == "app.py"
    assert capsys.readouterr().out == f"{hub.url}/spaces/{NAME}: {len(files_of(hub))} files\n"
    sent = b"".join(hub.stored.values()) + "".join(files_of(hub).values()).encode()
    assert b"secret" not in sent and b"mine" not in sent


def test_links_out_of_the_project_are_not_followed(hub, project, tmp_path):
    (tmp_path / "private.wav").write_text("mine")
    (project / "examples" / "hum_flute.ogg").symlink_to(tmp_path / "private.wav")
    (project / "linked.py").symlink_to(tmp_path / "private.wav")
    assert push(project) == 0
    assert "mine" not in "".join(files_of(hub).values())


def test_second_push_sends_only_what_changed_and_deletes_nothing(hub, project):
    push(project, "--public")
    repo = hub.repos["space", NAME]
    assert not repo.private
    repo.commit(repo.files | {"by_hand.txt": repo.files["LICENSE"]}, "by hand")
    assert push(project) == 0
    assert len(repo.commits) == 3 and not repo.private
    (project / "transfer.py").write_text("import config  # better\n")
    (project / "checkpoints" / "pretrained" / "guitar.pth").write_text("more weights")
    assert push(project) == 0
    changed = {path for path, blob in repo.files.items() if repo.commits[-2][1].get(path) != blob}
    assert changed == {"transfer.py", "checkpoints/pretrained/guitar.pth"}
    assert len(hub.uploads) == 3 and "by_hand.txt" in repo.files  # two models and a sound


def test_temporary_failures_are_retried(hub, project):
    hub.faults = [Fault("PUT /lfs", times=2, cut=3), Fault("POST .*/commit/", status=503), Fault("POST .*/create")]
    assert push(project) == 0
    assert len(files_of(hub)) == len(FILES) - 1 and hub.repos["space", NAME].messages == ["new", "Update the page"]


def test_dry_run_needs_no_hub(project, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert push(project, "--dry_run") == 0
    assert set(capsys.readouterr().out.split("\n")[:-1]) == FILES.keys() - {"train.py"}


@pytest.mark.parametrize("token", ["hf_read", "hf_wrong", None])
def test_invalid_token_is_one_sentence(hub, project, monkeypatch, caplog, token):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    assert push(project) == 1
    assert f"{hub.url}/spaces/{NAME}" in caplog.text and "HF_TOKEN" in caplog.text and not hub.repos


def test_refusal_shows_the_message_of_the_hub(hub, project, caplog):
    headers = {"X-Error-Message": "Payment needed"}
    hub.faults = [Fault("POST .*/create", times=9, status=402, headers=headers)]
    assert push(project) == 1
    assert NAME in caplog.text and "Payment needed" in caplog.text


@pytest.mark.parametrize("matter", [None, "sdk: docker\napp_file: app.py", "sdk: [", "- a"])
def test_readme_without_front_matter_is_refused(hub, project, caplog, matter):
    (project / "README.md").write_text(f"---\n{matter}\n---\n# Hello" if matter else "# Hello")
    assert push(project) == 1
    assert "front matter" in caplog.text and not hub.repos


def test_incomplete_project_is_refused(hub, project, caplog):
    (project / "checkpoints" / "pretrained" / "trumpet.pth").unlink()
    assert push(project) == 1 and "holds no model" in caplog.text
    (project / "config.json").unlink()
    assert push(project) == 1 and "lacks config.json" in caplog.text
    with pytest.raises(SystemExit):
        space.parse_args(["--repo_id", "space"])


def test_page_runs_from_the_uploaded_files(tmp_path):
    """The page starts and plays where nothing else of the project is, with what requirements.txt installs."""
    names = space.find_files(ROOT)
    assert {"app.py", "web/__init__.py", "checkpoints/pretrained/trumpet.pth", "examples/hum.wav"} <= {*names}
    tracked = subprocess.run(["git", "ls-files", "checkpoints/pretrained"], cwd=ROOT, capture_output=True, text=True)
    assert {*tracked.stdout.split()} <= {*names}  # a new model has to be named
    others = ("data/", "tests/", "scripts/", "venv/", "train", "evaluation")
    assert not [name for name in names if name.startswith(others)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    code = """
import sys
sys.path[:] = ["", *(path for path in sys.path if path != sys.argv[1])]  # without the project itself
import pathlib, app, checkpoint, config
assert not [name for name in ("pytest", "selenium") if name in sys.modules]
page = app.build_ui(pathlib.Path("checkpoints"), "cpu", config.load_config().page)
checkpoint.load_model(checkpoint.pretrained_path("trumpet"))
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None)
    assert not path or not pathlib.Path(path).is_relative_to(sys.argv[1]) or "site-packages" in path, path
"""
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
