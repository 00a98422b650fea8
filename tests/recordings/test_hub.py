"""recordings/hub_client.py: retries and refusals of a local Hub, and invalid indexes."""

import argparse
import json

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import close_session

from hub_server import Fault
from recordings.hub_client import HubError, HubFile, HubIndex, RefusedError, UnreachableError, ask_hub, check_repo_id

NAME = "user/trumpet"


@pytest.mark.parametrize(
    ("status", "code", "kind", "attempts"),
    [
        (403, "GatedRepo", RefusedError, 1),
        (404, "RepoNotFound", RefusedError, 1),
        (401, "", RefusedError, 1),
        (403, "", RefusedError, 1),
        (402, "", HubError, 1),
        (503, "", UnreachableError, 8),
        (0, "", UnreachableError, 8),
    ],
)
@pytest.mark.parametrize("token", ["hf_read", None])
def test_refusals_name_address_cause_and_attempt(hub, monkeypatch, status, code, kind, attempts, token):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    headers = {"X-Error-Code": code, "X-Error-Message": "Payment needed"}
    hub.faults = [Fault("GET", times=99, status=status, headers=headers)]
    address = f"{hub.url}/datasets/{NAME}"
    with pytest.raises(HubError, match=rf"^{address}: .+ \(attempt {attempts}\)$") as caught:
        ask_hub(lambda: HfApi().dataset_info(NAME), address)
    assert type(caught.value) is kind and len(hub.pauses) == attempts - 1
    if status in (401, 403) and not code:
        assert "HF_TOKEN" in str(caught.value) and ("without a token" in str(caught.value)) is (token is None)
    assert status != 402 or "Payment needed" in str(caught.value)


def test_requested_pauses_are_limited(hub):
    hub.add("dataset", NAME, {})
    pauses = ("77", "99999", "soon")
    hub.faults = [Fault("GET", status=429, headers={"Retry-After": pause}) for pause in pauses]
    ask_hub(lambda: HfApi().dataset_info(NAME), NAME)
    assert hub.pauses == [77, 600, 4]


@pytest.mark.parametrize("name", ["trumpet", "a b/c", "a/b/c", "-a/b", "../b", "a/..", ""])
def test_invalid_repository_names_are_refused(name):
    with pytest.raises(argparse.ArgumentTypeError, match="user/name"):
        check_repo_id(name)
    assert check_repo_id(NAME) == NAME


def test_an_unusable_proxy_is_named(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks://127.0.0.1:1")
    with pytest.raises(HubError, match=f"{NAME}.*socks"):
        ask_hub(lambda: close_session() or HfApi().dataset_info(NAME), NAME)


@pytest.fixture
def values():
    """An index as JSON values."""
    entries = tuple(HubFile(f"more/{number}.wav.pt", f"{number:064x}", 5, 7, "0" * 64) for number in range(3))
    return json.loads(HubIndex("trumpet", {"version": 2}, entries).to_json())


def test_an_index_survives_writing_and_older_ones_are_read(values):
    again = HubIndex.from_json(json.dumps(values), NAME)
    assert json.loads(again.to_json()) == values
    values["recordings"][0]["f0_range"] = [100.0, 200.0]
    assert HubIndex.from_json(json.dumps(values), NAME) == again


OUTSIDE = ("../up.pt", "/root.pt", "a/../../b.pt", ".hidden.pt", "a\\b.pt", "C:a.pt", "a.pt\n")
ODD = ("a.txt", "", "a//b.pt", "ä.pt", "\x1b[2J.pt", "x" * 300 + ".pt")


@pytest.mark.parametrize("name", [*OUTSIDE, *ODD, "MORE/1.wav.pt", "more/1.wav.pt"])
def test_unsafe_file_names_are_refused(values, name):
    values["recordings"][0]["file"] = name
    with pytest.raises(HubError) as caught:
        HubIndex.from_json(json.dumps(values), NAME)
    text = str(caught.value)
    assert NAME in text and len(text) < 400 and text.isprintable()
    assert any(repr(each["file"][:80]) in text for each in values["recordings"])


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(format_version=2),
        lambda values: values.pop("instrument") and None,
        lambda values: values.update(instrument="/../../x"),
        lambda values: values.update(instrument=["trumpet"]),
        lambda values: values.update(extractor=3),
        lambda values: values.update(recordings=[]),
        lambda values: values["recordings"][0].update(file=3),
        lambda values: values["recordings"][0].update(n_frames=10**12),
        lambda values: values["recordings"][0].update(n_bytes=float("nan")),
        lambda values: values["recordings"][0].update(take=None),
        lambda values: values["recordings"][0].pop("sha256") and None,
        *("", "[]", "null", "{", "[" * 100_000, "9" * 10_000),
    ],
)
def test_invalid_indexes_are_refused(values, change):
    text = change if isinstance(change, str) else change(values) or json.dumps(values)
    with pytest.raises(HubError, match=r"index\.json of user/trumpet"):
        HubIndex.from_json(text, NAME)
