"""`ilora run --dry-run`: what a run will need, as a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from ilora.config import load_config, problems
from ilora.errors import InputError
from ilora.overrides import read_overrides
from ilora.planning.need import GB, Hardware, Need
from ilora.planning.plan import DryRun, dry_run
from ilora.present.numbers import duration, size
from ilora.training.expected import COUNTED

_BYTES = {
    "base weights": "base",
    "whole layers, for a while": "gathered",
    "adapter, gradients, AdamW": "adapter",
    "activations": "activations",
    "logits, or gradients of a layer": "momentary",
    "reserved": "reserved",
    "all": "bytes",
}


def read_hardware(changes: Iterable[str]) -> Hardware:
    """The hardware with `key=value` changes. Raises InputError naming the key, the value and what is allowed."""
    values = {key: value for _, key, value in read_overrides(changes)}
    try:
        return Hardware.model_validate(values)
    except ValidationError as error:
        raise InputError("; ".join(f"--hardware {line}" for line in problems(error, values, Hardware))) from None


def dry_run_command(
    config: Path, overrides: Iterable[str], *, devices: int, nodes: int, hardware: Iterable[str]
) -> tuple[list[str], Table]:
    """The lines and the table that the command prints."""
    machine = read_hardware(hardware)
    found = dry_run(load_config(config, overrides), devices=devices, nodes=nodes, hardware=machine)
    return lines(found, machine), table(found, machine)


def lines(found: DryRun, hardware: Hardware) -> list[str]:
    """What holds in every layout."""
    shape, work, config = found.shape, found.work, found.config
    stored = "" if shape.stored is None else f"; {size(shape.stored)} in safetensors files"
    how = (
        f"counted in up to {COUNTED:,} of each task"
        if found.counted
        else "data.max_length, as the model's folder has no tokenizer to count with"
    )
    layout = found.needs[0].layout
    made = [
        f"model:    {config.model.name}: {shape.parameters:,} parameters, {shape.active:,} of them for a token; "
        f"{size(shape.bytes)} in memory{' in bfloat16' if config.model.dtype == 'auto' else ''}{stored}",
        f"adapter:  {shape.trained:,} trained parameters, {size(found.adapter_bytes)}",
        f"rows:     {sum(found.rows.values()):,} in {len(found.rows)} phases; "
        f"{sum(found.steps.values()):,} optimizer steps",
        f"step:     {work.rows} rows with those that are replayed; a row has {work.tokens:,.0f} tokens, "
        f"at most {work.longest:,} ({how}), an answer at most {work.answer}",
        f"disk:     {size(found.disk_bytes)} for one adapter a task, its snapshots and checkpoints of "
        f"{size(found.checkpoint_bytes)}; predictions aside",
        f"hardware: {layout.nodes} x {layout.devices} devices of {hardware.memory:g} GB, "
        f"{hardware.rate:g} TFLOP/s each, {hardware.link:g} GB/s within a machine, "
        f"{hardware.network:g} GB/s to others (--hardware)",
    ]
    if found.whole is not None and layout.all > 1:
        made.append(f"parts:    model.shard can be `none` alone: {found.whole}")
    if config.contrast:
        names = ", ".join(method.name for method in config.contrast)
        made.append(f"contrast: {names}: one more run of the stream for each, not counted here")
    if config.method.prompt_tokens(1):
        made.append(
            f"warning:  {config.method.name} trains prompts, and no such adapter: of `adapter` and `disk` it has others"
        )
    return made + ([] if found.refused is None else [f"warning:  a run refuses {layout.all} devices: {found.refused}"])


def table(found: DryRun, hardware: Hardware) -> Table:
    """Bytes of a device and seconds of a step, one column for each layout."""
    made = Table(title="of each device")
    made.add_column("model.shard")
    for one in found.needs:
        made.add_column(one.layout.name, justify="right")
    made.add_row("rows at once", *(f"{one.micro_batch:,}" for one in found.needs))
    again = ("computed again" if one.checkpointing else "kept" for one in found.needs)
    made.add_row("activations are", *again, end_section=True)
    for title, name in _BYTES.items():
        cells = [size(getattr(one, name)) for one in found.needs]
        made.add_row(title, *cells, end_section=name in ("reserved", "bytes"))
    made.add_row("fits", *(_fits(one, hardware) for one in found.needs), end_section=True)
    made.add_row("weights that arrive, a step", *(size(one.traffic) for one in found.needs))
    made.add_row("gradients that arrive, a step", *(size(one.reduced) for one in found.needs), end_section=True)
    made.add_row("computing, seconds a step", *(f"{one.computing:.3g}" for one in found.needs))
    made.add_row("weights, at the same time", *(f"{one.gathering:.3g}" for one in found.needs))
    made.add_row("gradients", *(f"{one.reducing:.2g}" for one in found.needs))
    made.add_row("seconds a step", *(f"{one.seconds:.3g}" for one in found.needs), end_section=True)
    made.add_row("all steps", *(duration(found.seconds(one)) for one in found.needs))
    return made


def _fits(one: Need, hardware: Hardware) -> Text:
    left = hardware.memory * GB - one.bytes
    return Text("yes", style="green") if left >= 0 else Text(f"no, {size(-round(left))} too much", style="red")
