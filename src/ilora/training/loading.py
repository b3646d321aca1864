"""From a configuration to an engine that is ready to train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator

from ilora.config import Config
from ilora.data.encoding import Encoder
from ilora.data.examples import Example
from ilora.data.stored import Joined, Stored
from ilora.errors import InputError
from ilora.files import cache_folder
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.model.fitting import checkpoint
from ilora.model.frozen import Below
from ilora.model.gpu import suit_the_device
from ilora.model.identity import BaseModel
from ilora.model.load import GivenModel, ends, load_model, positions, prepare_model
from ilora.model.memory import TOKENS_ON_GPU
from ilora.model.sharded import layout_of
from ilora.model.sharding import sharding_of
from ilora.progress import Display
from ilora.settings import LEAST_LENGTH
from ilora.training.interrupt import StopRequest

TOKENS_ON_CPU = 4096  # in a micro-batch of `auto`: more are not faster there


def load_engine(
    config: Config, accelerator: Accelerator, given: GivenModel | None = None, *, tasks: int = 1
) -> tuple[Engine, Encoder]:
    """The configured model with its first adapter, in training mode, and what encodes rows for it.

    given: the model, where it need not be loaded; the adapter is put into it.
    tasks: how many the stream has. The vectors that a prompt method puts before a row count against `max_length`.
    Raises InputError where the model cannot be loaded, or the adapter or the tokenizer does not fit it.
    """
    length = config.data.max_length
    if given is None:
        base, tokenizer = load_model(
            config.model, max_length=length, device=accelerator.device, accelerator=accelerator
        )
    else:
        layout_of(config.model, accelerator, lambda: given.model.config, given=True)  # refuses to split it
        base, tokenizer = given.model, given.tokenizer
        if config.model.quantization == "none":
            base.to(accelerator.device)
        prepare_model(base, tokenizer, config.model, max_length=length)
    if sharding_of(base) is not None and config.adapter.use_dora:
        raise InputError("adapter.use_dora: its magnitudes begin as norms of whole weights; set model.shard: none")
    encoder = encoder_beside_prompts(config, tokenizer, positions(base.config), tasks=tasks, ends=ends(base))
    identity = BaseModel.of(base, config.model)
    engine = Engine(
        model=adapters.attach(base, config.adapter, name="fast", seed=config.seed, base=identity),
        accelerator=accelerator,
        pad=encoder.pad,
        micro_batch_size=config.training.micro_batch_size,
        may_recompute=config.model.gradient_checkpointing == "auto",
        merge=config.evaluation.merge,
        adapted=config.adapter.layers or 0,
        base=identity,
    )
    if engine.micro_batch_size == "auto":
        engine.micro_batch_tokens = TOKENS_ON_CPU if engine.device.type == "cpu" else TOKENS_ON_GPU
    if config.evaluation.merge and (shared := adapters.tied(engine.model)):
        raise InputError(
            f"evaluation.merge: {', '.join(shared)} has an adapter and shares its weights with another layer, "
            "which the merged adapter would change too; leave out evaluation.merge or that layer"
        )
    if config.model.gradient_checkpointing is True:
        checkpoint(engine)
    suit_the_device(engine, config.model)
    if given is not None:
        given.ready(engine)
    engine.model.train()
    return engine, encoder


def encoder_beside_prompts(
    config: Config, tokenizer: Any, most: int | None, *, tasks: int, ends: Sequence[int] = ()
) -> Encoder:
    """The encoder of a run's rows, with the `max_length` and the positions that the method's prompts leave to them.

    most: tokens that the model reads. Raises InputError where too little is left.
    """
    prompts = config.method.prompt_tokens(tasks)
    left = config.data.max_length - prompts
    if left < LEAST_LENGTH:
        raise InputError(
            f"data.max_length: {config.data.max_length}, of which the prompts of {config.method.name} take {prompts} "
            f"in a stream of {tasks} tasks; at least {LEAST_LENGTH} must be left for a row"
        )
    data = config.data.model_copy(update={"max_length": left})
    return Encoder(tokenizer, data, ends=ends, positions=None if most is None else most - prompts, vectors=prompts)


def keep_states_below(
    engine: Engine, sets: Sequence[Sequence[Example]], *, title: str, display: Display, stop: StopRequest
) -> None:
    """Compute once what the frozen layers under the adapter make of these rows; the engine then starts from it."""
    if any(isinstance(rows, Stored | Joined) for rows in sets):
        raise InputError(
            "adapter.keep_below: it holds the states of all rows in memory, and a task has more rows than "
            "data.rows_in_memory; leave out one of the two"
        )
    engine.rejoin()
    engine.below = Below(engine.core, above=engine.adapted, folder=cache_folder() / "below")
    with display.bar(title, sum(map(len, sets))) as bar:

        def advance(rows: int) -> None:
            bar.advance(rows)
            stop.check()

        for first in (True, False):  # the first process computes, the others then read what it has written
            if engine.accelerator.is_main_process == first:
                for rows in sets:
                    engine.below.prepare(rows, advance=advance)
            engine.rejoin()
            engine.accelerator.wait_for_everyone()
