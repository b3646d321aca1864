"""The hub: out of reach, without what was asked for, and what the cache has."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from ilora import hub
from ilora.data.formats import load_hub
from ilora.errors import InputError
from ilora.model.load import load_tokenizer
from ilora.settings import ModelConfig

NOWHERE = "http://127.0.0.1:9"
COMMIT = "0" * 40
ANSWERS = {
    "owner/there": (200, ""),
    "owner/gated": (403, "GatedRepo"),
    "owner/without": (404, "EntryNotFound"),
    "owner/ill": (503, ""),
    "owner/nowhere": (404, ""),
    "owner/busy": (429, ""),
    "owner/shut": (401, ""),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and no hub."""
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.setattr(constants, name, str(tmp_path / name))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    endpoint(monkeypatch, NOWHERE)


def endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that has `owner/there`, with the revision `main` alone; what it was asked."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            name, _, file = self.path.removeprefix("/datasets").strip("/").partition("/resolve/")
            status, error = ANSWERS.get(name, (404, "RepoNotFound"))
            if status == 200 and not file.startswith("main/"):
                status, error = 404, "RevisionNotFound"
            self.send_response(status)
            headers = {"ETag": '"1"', "X-Repo-Commit": COMMIT, "Content-Length": "0"} | {"X-Error-Code": error}
            for key in headers:
                self.send_header(key, headers[key])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        endpoint(monkeypatch, f"http://127.0.0.1:{made.server_port}")
        yield asked
        made.shutdown()


# -- out of reach ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_out_of_reach_is_one_message_at_once(kind: hub.Kind, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError) as caught:
        hub.refuse_unknown("owner/name", "v1", kind=kind)
    assert time.monotonic() - begun < 4
    cache = tmp_path / ("HF_HUB_CACHE" if kind == "model" else "HF_HOME/datasets")
    for part in (f"{kind} 'owner/name'", "revision v1", str(cache), NOWHERE, "a local folder", "HF_ENDPOINT", "PROXY"):
        assert part in str(caught.value)


def test_offline_by_the_variable_is_said(monkeypatch: pytest.MonkeyPatch, server: list[str]) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        hub.refuse_unknown("owner/there")
    assert server == []


def test_a_model_in_the_cache_is_loaded_from_it(tiny_model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "HF_HUB_CACHE" / "models--owner--tiny" / "snapshots" / COMMIT
    shutil.copytree(tiny_model, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    begun = time.monotonic()
    assert NOWHERE in str(hub.refuse_unknown("owner/tiny"))
    assert load_tokenizer(ModelConfig(name="owner/tiny")).eos_token == "</s>"
    assert time.monotonic() - begun < 4
    assert not constants.HF_HUB_OFFLINE  # for others, and for later
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=f"owner/tiny.*from the cache: {NOWHERE}"):
        load_tokenizer(ModelConfig(name="owner/tiny"))


def test_a_data_set_that_is_nowhere(server: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match=r"dataset 'owner/rows': http.* has no such dataset"):
        load_hub("owner/rows", split="train")
    endpoint(monkeypatch, NOWHERE)
    with pytest.raises(InputError, match=f"dataset 'owner/rows'.*{NOWHERE}"):
        load_hub("owner/rows", split="train")


def test_a_hub_that_is_out_of_reach_is_asked_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def silent(url: str, **_: object) -> None:
        asked.append(url)
        raise OSError("no route")

    monkeypatch.setattr(hub, "get_hf_file_metadata", silent)
    now = time.monotonic()
    endpoint(monkeypatch, "http://other.invalid")
    for later, times in ((0, 1), (1, 1), (hub.AGAIN + 2, 2)):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        with pytest.raises(InputError, match="no route"):
            hub.refuse_unknown("owner/name")
        assert len(asked) == times


# -- a hub that answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "revision", "says"),
    [
        ("owner/three", None, "has no such model"),
        ("owner/there", "v2", "has no revision 'v2'"),
        ("owner/gated", None, "let in"),
        ("owner/shut", None, "answers 401 .*HF_TOKEN"),
        ("owner/ill", None, "answers 503 Service Unavailable"),
        ("owner/nowhere", None, "answers 404 Not Found"),
        ("owner/busy", None, "answers 429 .*HF_TOKEN"),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_other_words(
    name: str, revision: str | None, says: str, server: list[str]
) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match=says) as caught:
        load_tokenizer(ModelConfig(name=name, revision=revision))
    assert time.monotonic() - begun < 3
    assert str(caught.value).count(name) == 1
    assert len(server) == 1


@pytest.mark.parametrize("name", ["owner/there", "owner/without"])
def test_a_hub_that_answers_is_used(name: str, server: list[str]) -> None:
    with hub.within_reach(name, "main"):
        assert not constants.HF_HUB_OFFLINE
    assert server == [f"/{name}/resolve/main/config.json"]


def test_a_place_is_no_business_of_the_hub(tmp_path: Path, server: list[str]) -> None:
    for name in (str(tmp_path), "no hub id", "a/b/c"):
        assert hub.refuse_unknown(name) is None
    assert server == []
