"""What several test files need: small data, a method or a run to look into, a run that is killed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from ilora import RunResult, resume, run
from ilora.config import Config
from ilora.data.examples import Example, collate
from ilora.data.task import Phase
from ilora.methods import METHODS, Method
from ilora.methods.view import Position, RunView
from ilora.model import adapters
from ilora.model.engine import Engine
from ilora.progress import Display
from ilora.replay.memory import ReplayMemory
from ilora.settings import AdapterConfig, TrainingConfig
from ilora.stream import load_tasks
from ilora.training import session as session_module
from ilora.training.evaluating import StreamEvaluator
from ilora.training.folder import RunFolder
from ilora.training.interrupt import StopRequest
from ilora.training.session import Session

COLOURS = ["red", "green", "blue", "black"]
ANIMALS = ["cat", "dog", "owl", "fox"]
LABELS = ("01-one", "02-two", "03-three")  # of the three small tasks, as file names have them

MakeConfig = Callable[..., Config]
WholeRun = Callable[[str], RunResult]


# -- data --------------------------------------------------------------------------------------------------------------


def task_rows(name: str, count: int, *, seed: int) -> list[dict[str, str]]:
    """Rows of a small closed task: a word of the prompt decides the answer; the tasks disagree on how."""
    source = random.Random(f"{name}/{seed}")
    rows = []
    for number in range(count):
        word = source.choice(COLOURS)
        shift = sum(map(ord, name)) % 4
        answer = ANIMALS[(COLOURS.index(word) + shift) % 4]
        filler = " ".join(source.choice(["small", "old", "new", "big"]) for _ in range(source.randint(0, 6)))
        rows.append({"prompt": f"{name} {number} {filler} {word} :", "answer": answer})
    return rows


def write_task(folder: Path, name: str, *, train: int = 24, evaluate: int = 6, test: int = 8) -> Path:
    """A TRACE-form folder `folder/name/{train,eval,test}.json`."""
    (folder / name).mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": train, "eval": evaluate, "test": test}.items()):
        rows = task_rows(f"{name}", count, seed=seed)
        (folder / name / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / name


# -- a method without a run --------------------------------------------------------------------------------------------


def plain(tiny_model: Path) -> LlamaForCausalLM:
    """The base model, by transformers alone."""
    return LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False).eval()


def view(
    model: PeftModel,
    *,
    pad: int,
    memory: ReplayMemory | None = None,
    rows: Sequence[Example] = (),
    **position: Any,
) -> RunView:
    """What a method is given: this model, an empty memory unless told otherwise, and a position."""
    engine = Engine(model, Accelerator(), pad=pad)
    memory = ReplayMemory(0, seed=0) if memory is None else memory  # an empty one is false
    return RunView(engine, memory, TrainingConfig(), Position(**position), rows)


def move(method: Method[Any], **position: Any) -> None:
    """Put a method elsewhere in its run."""
    method.run.position = replace(method.run.position, **position)


def train_with(method: Method[Any], **settings: Any) -> None:
    """Give a method other training settings."""
    method.run.training = TrainingConfig(**settings)
    method.engine.micro_batch_size = method.run.training.micro_batch_size


def snapshot(model: PeftModel, name: str) -> dict[str, Tensor]:
    """A copy of an adapter's tensors."""
    return {key: value.detach().clone() for key, value in adapters.parameters(model, name).items()}


# What a test that looks at weights alone leaves out of the evaluation.
FEW_SCORES = ("evaluation.zero_shot=false", "evaluation.unseen=none")
# The shortest stream on which a method still does all that it can: two steps per epoch, four per task.
SMALL = (*FEW_SCORES, "evaluation.max_new_tokens=2", "data.limit.train=16", "data.limit.test=2")


# Each calls the model in a way of its own; the others do as one of these.
CALLS = ["derpp", "ewc", "gem", "ilora", "ilora+", "individual", "inflora", "l2p", "lwf", "migu", "olora"]
CALLS += ["progressive_prompts", "router", "sdft", "seekr", "sure"]


# -- a run, driven by hand ---------------------------------------------------------------------------------------------


def settings(name: str) -> dict[str, object]:
    """Small settings that make the method do all that it can on a few dozen rows."""
    fields = METHODS[name].Config.model_fields
    small = {"memory_size": 20, "prompt_length": 4, "protected_rank": 0.25, "pseudo_answers": "written"}
    return {"name": name} | {key: value for key, value in small.items() if key in fields}


def begin(config: Config, folder: Path) -> Session:
    """What `run` makes, to be driven by hand."""
    folder.mkdir()
    return Session(
        config,
        folder,
        load_tasks(config.data),
        accelerator=Accelerator(),
        display=Display(quiet=True),
        stop=StopRequest(enabled=False),
    )


def train(session: Session) -> Iterator[Phase]:
    """Train task by task, without evaluation: the caller sees the state right after each."""
    session.method.engine.model.train()
    for phase in session.stream.phases:
        session.train(phase)
        yield phase


def trained(config: Config, folder: Path) -> dict[str, Tensor]:
    """Train the whole stream without evaluation; the weights that were saved."""
    for _ in train(begin(config, folder)):
        pass
    return weights(folder)


def logits(session: Session, asked: str, answered_as: str | None = None) -> Tensor:
    """Of the training rows of task `asked`, computed as the method answers task `answered_as`; on the CPU."""
    engine = session.method.engine
    engine.model.eval()
    batch = collate(session.stream.train[asked], pad=engine.pad, device=engine.device)
    with torch.no_grad(), session.method.inference(answered_as or asked, session.method.variants[0]):
        found = engine.forward(batch).logits.cpu()
    engine.model.train()
    return found


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors that a run left, over all tasks: adapters, or prompts."""
    files = sorted(folder.glob("adapters/*/*/*.safetensors"))
    assert files
    return {
        f"{file.parent.relative_to(folder)}:{key}": value for file in files for key, value in load_file(file).items()
    }


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest absolute difference; the names must be the same."""
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def sealed(state: dict[str, Any]) -> str:
    """The content of a checkpoint's state.json: with the digest of all the rest, by which a damaged one is known."""
    rest = {key: value for key, value in state.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps(rest | {"sha256": digest})


def with_random_adapter(tiny_model: Path, *, dropout: float) -> PeftModel:
    """A model in training mode, in float32, whose adapter changes what it computes."""
    made = adapters.attach(plain(tiny_model), AdapterConfig(r=4, alpha=8, dropout=dropout), name="fast", seed=1)
    torch.manual_seed(3)
    for parameter in adapters.parameters(made, "fast").values():
        parameter.data.normal_(std=0.2)
    return made.train()


# -- pictures ----------------------------------------------------------------------------------------------------------


def sketch(patch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn and saved empty: rendering takes matplotlib longer than all else of a page."""
    patch.setattr(FigureCanvasSVG, "print_svg", lambda _, file, **__: file.write(b"<svg></svg>"))
    patch.setattr(FigureCanvasAgg, "print_png", _sketch)


def _sketch(canvas: FigureCanvasAgg, file: BinaryIO, **_: object) -> None:
    """In place of a PNG. What sets a label inside a contour asks for a renderer by a `draw` of its own for a moment."""
    if "draw" in vars(canvas.figure):
        canvas.figure.draw(canvas.get_renderer())
    file.write(b"\x89PNG")


# -- a run that is killed ----------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for kill -9: raised in the middle of a run, nothing is cleaned up."""


STAGES: dict[str, tuple[Any, str]] = {
    "step": (session_module, "optimizer_step"),
    "evaluation": (StreamEvaluator, "evaluate"),
    "adapters": (RunFolder, "save_adapters"),
}


def run_killed(
    config: Config | None, folder: Path, monkeypatch: pytest.MonkeyPatch, *, at: str, count: int, **options: Any
) -> None:
    """Run, or resume without a configuration, until a stage of STAGES begins for the `count`-th time: it never ends."""
    owner, name = STAGES[at]
    original, calls = getattr(owner, name), 0

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counting)
        go = partial(resume, folder) if config is None else partial(run, config, folder)
        with pytest.raises(Killed):
            go(quiet=True, **options)


def after_each_step(monkeypatch: pytest.MonkeyPatch, look: Callable[[Method[Any]], None]) -> None:
    """Look at the method after every optimizer step of the runs to come."""
    original = session_module.optimizer_step

    def watching(method: Method[Any], *args: Any) -> Any:
        report = original(method, *args)
        look(method)
        return report

    monkeypatch.setattr(session_module, "optimizer_step", watching)
