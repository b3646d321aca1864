"""Whether the Hugging Face hub can be reached: asked once, so that nothing is tried for a minute where it cannot."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ilora.errors import InputError

Kind = Literal["model", "dataset"]
PATIENCE = 4.0  # seconds for an answer
AGAIN = 60.0  # seconds after which a hub that was out of reach is asked again
_FILES: dict[Kind, str] = {"model": "config.json", "dataset": "README.md"}
_OTHERS: dict[Kind, str] = {
    "model": "a local folder or the alias smollm2-135m",
    "dataset": "a local folder, or `path` or `train`, `eval` and `test` in place of `dataset`",
}
_ADVICE = {
    401: " (there is no such name, or it asks for another token: `hf auth login` or HF_TOKEN)",
    403: " (ask there to be let in, then `hf auth login` or HF_TOKEN)",
    429: " (too many requests: wait, or give a token with HF_TOKEN)",
}
_silent: dict[str, tuple[float, str]] = {}  # by endpoint: when it was out of reach, and why


@contextmanager
def within_reach(name: str, revision: str | None = None, *, kind: Kind = "model") -> Iterator[None]:
    """Load `owner/name` from the hub inside; where the hub is out of reach, from the cache alone and without a wait.

    A local place is loaded as it is. Raises InputError, before or inside, where neither the hub nor the cache has it.
    """
    reason = refuse_unknown(name, revision, kind=kind)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or reason is not None
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}{f' (from the cache: {reason})' if reason else ''}") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def refuse_unknown(name: str, revision: str | None = None, *, kind: Kind = "model") -> str | None:
    """Why the hub does not give it, where the cache has `owner/name`; None where the hub has it, or `name` is a place.

    Raises InputError where neither has it: a hub that is out of reach or has an error, and one that knows no such name
    or revision. What is asked once is not asked again by the library, which would try for a quarter of a minute.
    """
    if Path(name).exists() or not _is_id(name):
        return None
    reason = _out_of_reach(name, revision, kind)
    if reason is not None and not _cached(name, revision, kind):
        raise InputError(
            f"{kind} '{name}'{_at(revision)}: it is not in the cache ({_cache(kind)}), and the hub does not give it: "
            f"{reason}. Give {_OTHERS[kind]}; or let the hub be reached: HTTPS_PROXY names a proxy, HF_ENDPOINT a "
            "mirror, HF_HOME the folder of a cache that has it"
        )
    return reason


def _out_of_reach(name: str, revision: str | None, kind: Kind) -> str | None:
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    when, reason = _silent.get(constants.ENDPOINT, (0.0, ""))
    if reason and time.monotonic() - when < AGAIN:
        return reason
    url = hf_hub_url(name, _FILES[kind], repo_type=kind, revision=revision, endpoint=constants.ENDPOINT)
    try:
        get_hf_file_metadata(url, timeout=PATIENCE)
    except GatedRepoError:
        raise InputError(
            f"{kind} '{name}'{_at(revision)}: {constants.ENDPOINT} gives it only to those who were let in; ask there, "
            "then `hf auth login` or HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{kind} '{name}': {constants.ENDPOINT} has no such {kind}, or a private one (`hf auth login`, HF_TOKEN), "
            "and there is no such local folder"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{kind} '{name}': {constants.ENDPOINT} has no revision '{revision}' of it") from None
    except EntryNotFoundError:
        return None  # it has the repository, if not this file; what is missing is said by who loads
    except HfHubHTTPError as error:
        status = int(error.response.status_code)
        if kind == "dataset" and status == 404:
            return None  # perhaps a mirror that does not say that only this file is missing
        return f"{constants.ENDPOINT} answers {status} {error.response.reason_phrase}{_ADVICE.get(status, '')}"
    except Exception as error:  # of the library for HTTP, which is another one in other versions
        reason = f"{constants.ENDPOINT}: {error or type(error).__name__}"
        _silent[constants.ENDPOINT] = time.monotonic(), reason
        return reason
    return None


def _cached(name: str, revision: str | None, kind: Kind) -> bool:
    """Whether the cache has something of it; the load says what is missing then."""
    if kind == "model":
        return isinstance(try_to_load_from_cache(name, _FILES[kind], revision=revision), str)
    there = [entry.name for entry in _cache(kind).glob("*___*" if "/" in name else "*")]  # spelt owner___the_name
    return _letters(name) in map(_letters, there)


def _cache(kind: Kind) -> Path:
    """Where the libraries keep what they once loaded."""
    if kind == "model":
        return Path(constants.HF_HUB_CACHE)
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")


def _is_id(name: str) -> bool:
    try:
        hf_hub_url(name, _FILES["model"])
    except HFValidationError:
        return False
    return True


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _at(revision: str | None) -> str:
    return f" (revision {revision})" if revision else ""
