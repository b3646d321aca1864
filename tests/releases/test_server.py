"""A server of releases: vLLM's and SGLang's requests against a local server that answers as they do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from ilora.errors import IloraError, InputError
from ilora.releases import change, journal
from ilora.releases.opening import open_run
from ilora.releases.server import KEY, Server, served_name
from ilora.releases.store import current, numbers, read_release
from tests.releases.conftest import no_report

pytestmark = pytest.mark.xdist_group("releases")


class Fake:
    """An engine's end points. kind: `vllm`, `sglang`, or `static` for one that loads nothing while it runs."""

    def __init__(self, kind: str) -> None:
        self.kind, self.served, self.keys = kind, dict[str, str](), list[str | None]()
        self.refuse = ""  # a reason not to load anything
        self.web = HTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self.url = f"http://127.0.0.1:{self.web.server_port}"

    def answer(self, path: str, body: dict[str, str]) -> tuple[int, str]:
        prefix = "/v1/" if self.kind == "vllm" else "/"
        if self.kind == "static" or path not in (f"{prefix}load_lora_adapter", f"{prefix}unload_lora_adapter"):
            return 404, '{"detail": "Not Found"}'
        name, loads = body["lora_name"], not path.endswith("unload_lora_adapter")
        if loads and not (Path(body["lora_path"]) / "adapter_config.json").is_file():
            return self._refusal(400, f"No adapter found for {body['lora_path']}")
        if loads and self.refuse:
            return self._refusal(400, self.refuse)
        if loads and name in self.served:
            return self._refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if not loads and name not in self.served:
            return self._refusal(404, f"The lora adapter '{name}' cannot be found, it is not loaded.")
        if loads:
            self.served[name] = body["lora_path"]
        else:
            del self.served[name]
        return 200, f"Success: {name}" if self.kind == "vllm" else json.dumps({"success": True})

    def _refusal(self, status: int, why: str) -> tuple[int, str]:
        if self.kind == "vllm":
            return status, json.dumps({"error": {"message": why, "code": status}})
        return 200, json.dumps({"success": False, "error_message": why})


class _Handler(BaseHTTPRequestHandler):
    fake: Fake

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.keys.append(self.headers["Authorization"])
        status, text = self.fake.answer(self.path, body)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[Fake]:
    made = Fake(getattr(request, "param", "vllm"))
    thread = Thread(target=made.web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.web.shutdown()
    thread.join()
    made.web.server_close()


@pytest.mark.parametrize("fake", ["vllm", "sglang"], indirect=True)
def test_load_and_unload(fake: Fake, two_releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    server, adapter = Server(fake.url), two_releases / "releases" / "1" / "adapter"
    server.load("run-1", adapter)
    server.load("run-1", adapter)  # it is there already
    assert fake.served == {"run-1": str(adapter)}
    assert set(fake.keys) == {"Bearer secret"}
    with pytest.raises(IloraError, match=r"refused load_lora_adapter of run-9 .*No adapter found"):
        server.load("run-9", two_releases / "nothing")
    server.unload("run-1")
    server.unload("run-1")  # it is gone already
    assert not fake.served


@pytest.mark.parametrize("fake", ["vllm", "sglang"], indirect=True)
def test_promote_and_roll_back(fake: Fake, two_releases: Path) -> None:
    change.rollback(two_releases, to=1, server=fake.url, report=no_report)
    assert list(fake.served) == [served_name(two_releases / "releases" / "1")]
    assert current(two_releases) == 1


def test_a_promotion_is_served_and_the_release_before_no_longer(fake: Fake, one_release: Path, tmp_path: Path) -> None:
    from ilora import add
    from tests.helpers import write_task

    before = served_name(one_release / "releases" / "1")
    fake.served[before] = "somewhere"
    add(one_release, [str(write_task(tmp_path / "tasks", "three", train=16, test=5))], quiet=True)
    fake.refuse = "max_loras is reached"
    with pytest.raises(IloraError, match="max_loras is reached"):
        change.promote(one_release, server=fake.url, report=no_report)
    assert (current(one_release), numbers(one_release), list(fake.served)) == (1, [1], [before])
    assert not (one_release / "releases" / "pending.json").exists()
    fake.refuse = ""
    change.promote(one_release, server=fake.url, report=no_report)
    assert current(one_release) == 2
    release = one_release / "releases" / "2"
    assert fake.served == {served_name(release): str(release / "adapter")}
    assert served_name(release).startswith("run-2-")


def test_a_promotion_that_was_killed_once_it_was_current_is_finished_without_the_server(one_release: Path) -> None:
    manifest = read_release(one_release).manifest
    event = journal.new_event(one_release, "promote", manifest, read_release(one_release).scores())
    journal.begin(one_release, journal.Pending(what="promote", number=1, server="http://127.0.0.1:9", event=event))
    open_run(one_release, no_report)
    assert current(one_release) == 1
    assert read_release(one_release).number == 1
    assert not (one_release / "releases" / "pending.json").exists()


def test_whoever_finishes_a_killed_change_unloads_the_release_before(fake: Fake, two_releases: Path) -> None:
    """The new release was loaded and was current when the process was killed."""
    older, newer = (two_releases / "releases" / number for number in ("1", "2"))
    fake.served = {served_name(older): "somewhere", served_name(newer): "somewhere"}
    release = read_release(two_releases)
    event = journal.new_event(two_releases, "promote", release.manifest, release.scores())
    journal.begin(two_releases, journal.Pending(what="promote", number=2, server=fake.url, event=event))
    open_run(two_releases, no_report)
    assert list(fake.served) == [served_name(newer)]
    fake.served[served_name(older)] = "somewhere"
    event = journal.new_event(
        two_releases, "rollback", read_release(two_releases, 1).manifest, release.scores(), left=2
    )
    pending = journal.Pending(what="rollback", number=1, withdrawn=1, server=fake.url, event=event)
    journal.begin(two_releases, pending)
    open_run(two_releases, no_report)
    assert list(fake.served) == [served_name(older)]


def test_a_refused_rollback_changes_nothing(fake: Fake, two_releases: Path) -> None:
    fake.refuse = "rank 8 is above max_lora_rank"
    with pytest.raises(IloraError, match="max_lora_rank"):
        change.rollback(two_releases, to=1, server=fake.url, report=no_report)
    assert current(two_releases) == 2
    assert not (two_releases / "releases" / "pending.json").exists()


@pytest.mark.parametrize("fake", ["static"], indirect=True)
def test_servers_that_cannot(fake: Fake, two_releases: Path) -> None:
    with pytest.raises(IloraError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        change.rollback(two_releases, to=1, server=fake.url, report=no_report)
    with pytest.raises(IloraError, match="cannot be reached"):
        change.rollback(two_releases, to=1, server="http://127.0.0.1:9", report=no_report)
    with pytest.raises(InputError, match="expected an address"):
        change.rollback(two_releases, to=1, server="localhost:8000", report=no_report)
    assert current(two_releases) == 2
