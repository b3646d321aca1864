"""environment.json: the machine and the versions that a run began with."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ilora.files import write_atomic
from ilora.progress import Display

_PACKAGES = ("ilora", "torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy")


def note_environment(path: Path, accelerator: Accelerator, display: Display) -> None:
    """Write environment.json; on a resume, say what differs."""
    file, now = path / "environment.json", _environment(accelerator)
    before = _read_environment(path)
    if before is None:
        if file.exists():
            display.warn(f"{file} cannot be read, it is written anew; the number of threads may not be that of before")
        write_atomic(file, json.dumps(now, indent=1) + "\n")
        return
    compared = ("packages", "device", "processes", "machine")
    changed = [f"{key}: {before.get(key)} -> {now[key]}" for key in compared if before.get(key) != now[key]]
    if changed:
        display.warn("not the environment the run began in, the last bits may differ; " + "; ".join(changed))
        before.setdefault("later", []).append(now)
        write_atomic(file, json.dumps(before, indent=1) + "\n")


def note_expected(path: Path, found: dict[str, Any]) -> None:
    """Write beside the machine what a run was expected to take; nothing where there is no environment.json."""
    known = _read_environment(path)
    if known is not None:
        write_atomic(path / "environment.json", json.dumps(known | found, indent=1) + "\n")


def noted_memory(path: Path) -> dict[str, Any]:
    """What a run noted of the memory that its steps need; empty where it has not."""
    return dict((_read_environment(path) or {}).get("memory") or {})


def use_threads(path: Path) -> None:
    """As many as the run began with: sums are split by thread, another number means other last bits."""
    threads = (_read_environment(path) or {}).get("threads")
    if isinstance(threads, int) and threads > 0 and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _read_environment(path: Path) -> dict[str, Any] | None:
    """None where it is missing or damaged: a run can go on without it."""
    try:
        content = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "packages" in content else None


def _environment(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_revision": _git_revision(),
        "machine": platform.machine(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _git_revision() -> str | None:
    """Of the code that runs, where it is a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
