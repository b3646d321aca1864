"""Measuring the probes of a phase where they are missing: of the base model once, and of the adapter that answers."""

from __future__ import annotations

import json
from pathlib import Path

from ilora.config import load_config
from ilora.connectivity import space
from ilora.connectivity.landscape import open_landscape
from ilora.errors import InputError
from ilora.files import write_atomic
from ilora.gates.evidence import PROBES, Evidence
from ilora.gates.probes import made_from, measure
from ilora.model import adapters
from ilora.progress import Display
from ilora.results.scores import BASE, prediction_folder


def measure_probes(run: Path, number: int | None, *, quiet: bool = False) -> None:
    """Write predictions/after-<phase>/probes.json, and the base model's, unless they are there.

    Raises InputError for a method that leaves no adapter that answers.
    """
    evidence, config = Evidence(run, number), load_config(run / "config.yaml")
    wanted = {"base": BASE, evidence.answering: evidence.phase}
    known = {name: evidence.ability(phase, name).probes for name, phase in wanted.items()}
    missing = [name for name, probes in known.items() if probes is None or probes.made_from != made_from(config)]
    if not missing:
        return
    if not evidence.results.get("adapter"):
        raise InputError(
            f"{run}: the method {evidence.results.get('method')} leaves no single adapter that answers, so its general "
            "skills cannot be measured with probes"
        )
    folder = run / "adapters" / evidence.phase / evidence.answering
    if not (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{run}: no adapter {evidence.answering} of phase {evidence.phase} to measure the probes with "
            f"(method {evidence.results.get('method')})"
        )
    adapter = space.read(folder)
    with Display(quiet=quiet) as display:
        display.say(f"gate: loading {config.model.name}")
        landscape = open_landscape(config, [], [adapter], split="test")
        landscape.use(adapter)
        with display.bar("probes", len(missing)) as bar:
            for name in missing:
                active = None if name == "base" else adapters.active_names(landscape.engine.model)
                with adapters.active(landscape.engine.model, active):
                    found = measure(landscape.engine, landscape.encoder, config)
                file = prediction_folder(run, wanted[name]) / PROBES
                write_atomic(file, json.dumps({name: found.model_dump()}, indent=1) + "\n")
                bar.advance()
