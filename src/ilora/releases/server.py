"""Telling a running vLLM or SGLang server to load a release's adapter, or to drop one.

vLLM takes them where it was started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, at
/v1/load_lora_adapter; SGLang where it was started with --enable-lora, at /load_lora_adapter. Both read the adapter's
folder themselves, so they must see the same file system.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from ilora.errors import IloraError, InputError

KEY = "ILORA_SERVER_KEY"  # the environment variable with the server's API key
_SECONDS = 120  # a server may read the adapter from a slow disk
_ABSENT = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)


@dataclass(frozen=True)
class Server:
    """A server at an address such as http://localhost:8000."""

    url: str

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"--server {self.url}: expected an address such as http://localhost:8000")

    def load(self, name: str, folder: Path) -> None:
        """Serve an adapter under a name; one that is served under it already is left. Raises IloraError."""
        self._ask("load_lora_adapter", {"lora_name": name, "lora_path": str(folder.absolute())}, done="already")

    def unload(self, name: str) -> None:
        """Serve a name no longer; one that is not served is no error. Raises IloraError."""
        self._ask("unload_lora_adapter", {"lora_name": name}, done="not loaded")

    def _ask(self, what: str, body: dict[str, str], *, done: str) -> None:
        """done: what the server's refusal says where there is nothing left to do."""
        status, answer = self._post(f"/v1/{what}", body)
        if status in _ABSENT and body["lora_name"] not in answer:  # SGLang's place, or vLLM that takes none
            status, answer = self._post(f"/{what}", body)
        if status in _ABSENT and body["lora_name"] not in answer:
            raise IloraError(
                f"{self.url}: it loads no adapters while it runs; start vLLM with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, or SGLang with --enable-lora"
            )
        if not _accepted(status, answer) and done not in answer:
            raise IloraError(f"{self.url}: refused {what} of {body['lora_name']} ({status}): {answer[:500]}")

    def _post(self, path: str, body: dict[str, str]) -> tuple[int, str]:
        """The status and the text of the answer."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
                return reply.status, reply.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            raise IloraError(f"{self.url}: cannot be reached: {error}") from None


def served_name(release: Path) -> str:
    """The name under which a server has a release: run, number, and digits that tell it from another of that name."""
    digest = hashlib.sha256((release / "manifest.json").read_bytes()).hexdigest()
    return f"{release.resolve().parent.parent.name}-{release.name}-{digest[:8]}"


def retire(server: Server, release: Path) -> None:
    """Unload a release that is no longer the current one. The new one is in use by then: a refusal is a warning."""
    try:
        server.unload(served_name(release))
    except IloraError as error:
        warnings.warn(f"{error}; release {release.name} is still served", stacklevel=2)


def _accepted(status: int, answer: str) -> bool:
    """Whether a request was granted: SGLang may answer 200 with `success` false."""
    if status != HTTPStatus.OK:
        return False
    try:
        content = json.loads(answer)
    except ValueError:
        return True  # vLLM answers with a sentence
    return not isinstance(content, dict) or content.get("success", True) is not False
