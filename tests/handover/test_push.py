"""`--push`, against a server on this machine that answers as the hub's API does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ilora.commands.export import export
from ilora.errors import IloraError


class Hub(ThreadingHTTPServer):
    """created: what create_repo asked for. files: what was committed. token: the one that it knows."""

    created: dict[str, Any]
    files: dict[str, bytes]
    token = "known"
    refuses = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._send(401, {"error": "Invalid username or password."})
        if self.server.refuses:
            return self._send(self.server.refuses, {"error": "no"})
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            return self._send(200, {"url": f"{self.server.address}/owner/name"})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        if self.path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        assert "/commit/main" in self.path, self.path
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._send(200, {"commitUrl": f"{self.server.address}/owner/name/commit/abc", "commitOid": "abc"})

    def _send(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Answers)
    server.created, server.files = {}, {}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "known")
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_pushed_is_the_folder(hub: Hub, finished: Path, tmp_path: Path) -> None:
    made = export(finished, tmp_path / "folder", push_to="owner/name", private=True)
    assert (hub.created["name"], hub.created["organization"]) == ("name", "owner")
    assert hub.created.get("private") is True or hub.created.get("visibility") == "private"
    assert hub.files == {path.name: path.read_bytes() for path in made.folder.iterdir()}
    assert made.address == f"{hub.address}/owner/name/commit/abc"
    assert "\n# name\n" in hub.files["README.md"].decode()


def test_nothing_is_pushed_unasked(hub: Hub, finished: Path, tmp_path: Path) -> None:
    assert export(finished, tmp_path / "folder").address is None
    assert (hub.created, hub.files) == ({}, {})


@pytest.mark.parametrize(
    ("token", "refuses", "says"), [("other", 0, "token"), ("known", 403, "owner/name"), ("known", 500, "500")]
)
def test_a_refusal_is_told_and_the_folder_stays(
    token: str, refuses: int, says: str, hub: Hub, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refuses = refuses
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(IloraError, match=says) as caught:
        export(finished, tmp_path / "folder", push_to="owner/name")
    assert "hf upload owner/name" in str(caught.value)
    assert (tmp_path / "folder" / "README.md").is_file()
    assert not hub.files
