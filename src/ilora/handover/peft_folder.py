"""The adapter as an ordinary PEFT folder that names its base model so that others find it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ilora.errors import InputError
from ilora.handover.source import Source


def write_peft(source: Source, folder: Path) -> None:
    """Copy weights and settings; in adapter_config.json stands the base's hub id and revision, or nothing."""
    settings = json.loads((source.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    weights = source.adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise InputError(f"{source.adapter}: no adapter_model.safetensors")
    base = source.base
    # A place on this machine would be of no use elsewhere, and none of their business.
    settings |= {"base_model_name_or_path": base.name if source.base_on_hub else None, "revision": base.revision}
    shutil.copyfile(weights, folder / weights.name)
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    base.write(folder)
