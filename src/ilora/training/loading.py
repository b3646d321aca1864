"""From a configuration to an engine that is ready to train."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator

from ilora.config import Config
from ilora.data.examples import Encoder, Example
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.frozen import Below
from ilora.model.load import cache_folder, load_model
from ilora.progress import Display
from ilora.training.interrupt import StopRequest


def load_engine(config: Config, accelerator: Accelerator) -> tuple[Engine, Encoder]:
    """The configured model with its first adapter, in training mode, and what encodes rows for it.

    Raises InputError where the model cannot be loaded, or the adapter or the tokenizer does not fit it.
    """
    base, tokenizer = load_model(config.model, max_length=config.data.max_length, device=accelerator.device)
    encoder = Encoder(tokenizer, config.data)
    engine = Engine(
        model=adapters.attach(base, config.adapter, name="fast", seed=config.seed),
        accelerator=accelerator,
        pad=encoder.pad,
        micro_batch_size=config.training.micro_batch_size,
        merge=config.evaluation.merge,
        adapted=config.adapter.layers or 0,
    )
    if config.model.gradient_checkpointing:
        engine.core.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    engine.model.train()
    return engine, encoder


def keep_states_below(
    engine: Engine, sets: Sequence[Sequence[Example]], *, title: str, display: Display, stop: StopRequest
) -> None:
    """Compute once what the frozen layers under the adapter make of these rows; the engine then starts from it."""
    engine.below = Below(engine.core, above=engine.adapted, folder=cache_folder() / "below")
    with display.bar(title, sum(map(len, sets))) as bar, engine.accelerator.main_process_first():

        def advance(rows: int) -> None:
            bar.advance(rows)
            stop.check()

        for rows in sets:
            engine.below.prepare(rows, advance=advance)
