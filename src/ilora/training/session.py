"""One method over one stream: train a task, save its adapters, evaluate, next task. Stopped anywhere, it can go on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn

from ilora.config import Config
from ilora.data.examples import Encoder, Example
from ilora.data.task import Phase, Task, phases
from ilora.errors import IloraError, InputError
from ilora.evaluation.perplexity import perplexity, read_text
from ilora.evaluation.scoring import EvaluationSet, evaluate, prepare
from ilora.files import append_line, flush_tree, write_atomic
from ilora.methods import method_class
from ilora.model import adapters
from ilora.model import base as model
from ilora.model.frozen import Below
from ilora.model.learner import Learner
from ilora.progress import Bar, Display
from ilora.replay.memory import ReplayMemory
from ilora.results.scores import (
    BASE,
    SCHEMA,
    perplexity_file,
    prediction_file,
    prediction_folder,
    read_perplexity,
    score_matrix,
)
from ilora.training import checkpoint as checkpoints
from ilora.training import trajectory
from ilora.training.checkpoint import Checkpoint
from ilora.training.interrupt import StopRequest
from ilora.training.loop import Plan, StepReport, optimizer_step
from ilora.training.optim import make_optimizer
from ilora.training.peak import peak_memory, reset_peak_memory
from ilora.training.state import Position, State


class Session:
    """One method at work: `state` is what moves, `path` the run folder, the encoded rows are made once.

    answers_of_base: the base model's predictions, where another run on the same stream has them already.
    """

    def __init__(
        self,
        config: Config,
        path: Path,
        tasks: list[Task],
        *,
        accelerator: Accelerator,
        display: Display,
        stop: StopRequest,
        answers_of_base: Path | None = None,
    ) -> None:
        self.config, self.path, self.tasks = config, path, tasks
        self.accelerator, self.display, self.stop = accelerator, display, stop
        self.answers_of_base = answers_of_base
        self.phases = phases(tasks, config.stream)
        reset_peak_memory(accelerator.device)
        display.say(f"{config.method.name}: loading {config.model.name}")
        base, tokenizer = model.load(config.model, max_length=config.data.max_length, device=accelerator.device)
        self.encoder = Encoder(tokenizer, config.data)
        self.train_sets = {task.name: self.encoder.encode(task, "train") for task in tasks}
        self.evaluation_sets = {task.name: self._evaluation_set(task) for task in tasks}
        text = config.evaluation.perplexity_file
        self.text = read_text(text, self.encoder, most=config.evaluation.perplexity_tokens) if text else None
        self.learner = Learner(
            model=adapters.attach(base, config.adapter, name="fast", seed=config.seed),
            memory=ReplayMemory(getattr(config.method, "memory_size", 0), seed=config.seed),
            accelerator=accelerator,
            training=config.training,
            seed=config.seed,
            pad=self.encoder.pad,
            merge=config.evaluation.merge,
            adapted=config.adapter.layers or 0,
            below=self._below(base) if config.adapter.keep_below else None,
        )
        if config.model.gradient_checkpointing:
            self.learner.core.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        self.method = method_class(config.method.name)(self.learner, config.method)
        optimizer = make_optimizer(self.method.trainable, config.training)
        self.state = State(config, tasks, self.learner, self.method, optimizer)

    def _below(self, base: nn.Module) -> Below:
        """The frozen layers under the adapter, with the states of all rows that are trained on or ranked."""
        below = Below(base, above=self.config.adapter.layers or 0, folder=model.cache_folder() / "below")
        sets = [[choice for row in self.evaluation_sets[task.name].choices for choice in row] for task in self.tasks]
        if method_class(self.config.method.name).trains:
            sets += self.train_sets.values()
        title = f"{self.config.method.name}: states below the adapter"
        with self.display.bar(title, sum(map(len, sets))) as bar, self.accelerator.main_process_first():

            def advance(rows: int) -> None:
                bar.advance(rows)
                if self.stop.requested:
                    raise KeyboardInterrupt

            for rows in sets:
                below.prepare(rows, advance=advance)
        return below

    def execute(self) -> dict[str, Any]:
        """Do all that is left to do; returns the content of results.json."""
        self._restore()
        self.learner.model.train()
        finished = self.state.position.finished
        with self.display.bar(f"{self.config.method.name}: stream", len(self.phases), done=finished) as bar:
            self._evaluate(0)
            if finished and self.state.position.ended:
                self._evaluate(finished)
            for phase in self.phases[finished:]:
                self._train(phase)
                self._evaluate(phase.index)
                self._save_checkpoint()  # with what the evaluation has cost
                bar.advance()
        return self._write_results(complete=True)

    def refuse_changes(self) -> None:
        """Raises InputError where configuration or data are not those that the folder's checkpoint was made with."""
        found, _ = checkpoints.load_latest(self.path / "checkpoints")
        if found is not None:
            try:
                self.state.refuse_changes(found)
            except InputError as error:
                raise InputError(f"{self.path}: {error}") from None

    def _restore(self) -> None:
        """Take up the newest sound checkpoint, if there is one, and cut metrics.jsonl and trajectory/ back to it."""
        found, passed = checkpoints.load_latest(self.path / "checkpoints")
        for message in passed.values():
            then = "going on from the one before" if found else "there is none before it, beginning again"
            self.display.warn(f"{message}; {then}")
        if found is not None:
            self.state.restore(found)
            position = self.state.position
            where = "after" if position.ended else f"after step {position.task_step} of"
            self.display.say(f"{self.config.method.name}: going on {where} task {position.phase} of {len(self.phases)}")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for path in passed:
                checkpoints.set_aside(path)
            _cut_metrics(self.path / "metrics.jsonl", self.state.counters.steps)
            trajectory.cut(self.path / "trajectory", self.state.counters.steps)
            if found is None:
                self._clear()
        if found is None:
            self._save_checkpoint()  # so that configuration and data are compared from the first resume on

    def _clear(self) -> None:
        """A run that begins again keeps nothing of what other weights, settings or data may have made."""
        for name in ("predictions", "adapters", "trajectory"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "results.json").unlink(missing_ok=True)
        if self.answers_of_base is not None and self.answers_of_base.is_dir():
            scratch = self.path / ".base-writing"
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(self.answers_of_base, scratch)
            flush_tree(scratch)
            (self.path / "predictions").mkdir()
            scratch.rename(prediction_folder(self.path, BASE))

    # -- training ------------------------------------------------------------------------------------------------

    def _train(self, phase: Phase) -> None:
        config, position = self.config.training, self.state.position
        rows = [example for task in phase.tasks for example in self.train_sets[task.name]]
        epochs = config.epochs if self.method.trains else 0
        plan = Plan(self.config.seed, phase.name, len(rows), config.global_batch_size, epochs)
        self.learner.rows = rows
        if position.ended:  # else: resumed inside this task, everything is as it was
            position = self.state.position = Position(phase.index, task_step=0, ended=False)
            self._locate(phase, plan, step=0, epoch=0)
            with self._timed():
                self.method.begin_task()
            if config.reset_optimizer or self.method.fresh_start:
                self.state.optimizer = make_optimizer(self.method.trainable, config)
        kept = trajectory.due(plan.steps, config.trajectory)
        title = f"training {phase.index}/{len(self.phases)} {phase.name}"
        with self.display.bar(title, plan.steps, done=position.task_step) as bar:
            for step, epoch, numbers in plan.batches(first=position.task_step + 1):
                self._locate(phase, plan, step=step, epoch=epoch)
                self._step([rows[number] for number in numbers], bar)
                if step in kept and self.accelerator.is_main_process:
                    trajectory.write(self.path / "trajectory", self.method, phase=phase.label)
                if self.stop.requested:
                    self._save_checkpoint()
                    raise KeyboardInterrupt
                if step % config.checkpoint_every == 0 and step < plan.steps:
                    self._save_checkpoint()
        self._locate(phase, plan, step=plan.steps, epoch=epochs - 1)
        with self._timed():
            self.method.end_task()
        position.ended = True
        content = self.state.checkpoint()  # first, since it refuses weights that are not finite
        self._save_adapters(phase)
        self._save_checkpoint(content)

    def _locate(self, phase: Phase, plan: Plan, *, step: int, epoch: int) -> None:
        """Tell the learner where it is: at a task's `step` (0: before the first one)."""
        learner = self.learner
        learner.task, learner.task_index = phase.name, phase.index
        learner.current_tasks = frozenset(task.name for task in phase.tasks)
        learner.task_step, learner.task_steps, learner.epoch = step, plan.steps, epoch
        learner.step = self.state.counters.steps + step - self.state.position.task_step

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """What a method does at a task's ends is part of its training time."""
        began = time.perf_counter()
        yield
        self.state.counters.train_seconds += time.perf_counter() - began

    def _step(self, examples: list[Example], bar: Bar) -> None:
        began = time.perf_counter()
        report = optimizer_step(self.method, self.state.optimizer, examples)
        seconds = time.perf_counter() - began
        counters = self.state.counters
        self.state.position.task_step, counters.steps = self.learner.task_step, self.learner.step
        counters.trained_tokens += report.tokens
        counters.train_seconds += seconds
        bar.advance(note=f"loss {report.loss:.3f}  {report.tokens / seconds:.0f} tokens/s")
        self._log(report, seconds)

    def _log(self, report: StepReport, seconds: float) -> None:
        learner = self.learner
        line = {
            "time": round(self.state.counters.train_seconds, 3),
            "task": learner.task,
            "task_index": learner.task_index,
            "step": learner.step,
            "epoch": learner.epoch,
            "loss": report.loss,
            "terms": report.terms,
            "grad_norm": report.grad_norm,
            "learning_rate": report.learning_rate,
            "tokens_per_second": round(report.tokens / seconds, 1),
            "peak_memory_bytes": peak_memory(learner.device),
        }
        if self.accelerator.is_main_process:
            append_line(self.path / "metrics.jsonl", json.dumps(line, ensure_ascii=False))
        if self.accelerator.trackers:
            numbers = {key: value for key, value in line.items() if isinstance(value, float | int)}
            terms = {f"terms/{name}": value for name, value in report.terms.items()}
            self.accelerator.log(numbers | terms, step=learner.step)

    def _save_adapters(self, phase: Phase) -> None:
        """RUN/adapters/<label>/<variant>, ordinary PEFT folders, complete or not there."""
        if self.accelerator.is_main_process:
            final = self.path / "adapters" / phase.label
            scratch = final.with_name(f".{final.name}-writing")
            shutil.rmtree(scratch, ignore_errors=True)
            try:
                self.method.save(scratch)
                flush_tree(scratch)
                shutil.rmtree(final, ignore_errors=True)
                scratch.rename(final)
            except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
                shutil.rmtree(scratch, ignore_errors=True)
                raise IloraError(f"{final}: cannot write the adapters: {error}") from error
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, content: Checkpoint | None = None) -> None:
        content = content or self.state.checkpoint()
        if self.accelerator.is_main_process:
            checkpoints.save(self.path / "checkpoints", content)
        self.accelerator.wait_for_everyone()

    # -- evaluation ----------------------------------------------------------------------------------------------

    def _evaluation_set(self, task: Task) -> EvaluationSet:
        settings = self.config.evaluation
        return prepare(
            task,
            self.encoder,
            self.train_sets[task.name],
            split=settings.split,
            max_new_tokens=settings.max_new_tokens,
        )

    def _evaluate(self, index: int) -> None:
        """Score what is to be scored after phase `index` (0: the base model) and is not there yet."""
        label = self.phases[index - 1].label if index else BASE
        variants = self.method.variants if index else self.method.variants[:1]
        jobs = [
            (variant, task, prediction_file(self.path, label, variant, task, answering=self.method.variants[0]))
            for variant in variants
            for task in self._scored_after(index)
        ]
        jobs = [job for job in jobs if not self._agreed(job[2].is_file())]
        began = time.perf_counter()
        rows = sum(len(self.evaluation_sets[task.name].examples) for _, task, _ in jobs)
        with self.display.bar(f"evaluating after {label}", rows) as bar:
            for variant, task, file in jobs:
                before = self._settled_answers(index, variant, task)
                if before is None:
                    self._predict(task, variant if index else None, file, bar)
                else:
                    self._repeat(before, file)
                    bar.advance(len(self.evaluation_sets[task.name].examples))
                if self.stop.requested:
                    raise KeyboardInterrupt
        if index in (0, len(self.phases)):
            self._measure_perplexity(label, variants if index else [])
        self.state.counters.evaluation_seconds += time.perf_counter() - began
        if jobs and index:
            self._say_scores(label, self._write_results(complete=False))

    def _settled_answers(self, index: int, variant: str, task: Task) -> Path | None:
        """The answers after the phase before, where the method cannot have changed them since."""
        earlier = [trained.name for phase in self.phases[: max(0, index - 1)] for trained in phase.tasks]
        if not self.method.settled or task.name not in earlier:
            return None
        label = self.phases[index - 2].label
        file = prediction_file(self.path, label, variant, task, answering=self.method.variants[0])
        return file if self._agreed(file.is_file()) else None

    def _repeat(self, before: Path, file: Path) -> None:
        if self.accelerator.is_main_process:
            write_atomic(file, before.read_bytes())

    def _predict(self, task: Task, variant: str | None, file: Path, bar: Bar) -> None:
        """Write one prediction file; variant None: the base model."""

        def advance(count: int) -> None:
            bar.advance(count)
            if self.stop.requested:
                raise KeyboardInterrupt

        base = adapters.active(self.learner.model, None)
        with base if variant is None else self.method.inference(task.name, variant):
            records = evaluate(
                self.evaluation_sets[task.name],
                self.learner,
                self.encoder,
                batch_size=self.config.evaluation.batch_size,
                accelerator=self.accelerator,
                advance=advance,
            )
        if self.accelerator.is_main_process:
            write_atomic(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    def _measure_perplexity(self, label: str, variants: Sequence[str]) -> None:
        """Write the perplexity of the configured text under every variant, none: of the base model; once."""
        file = perplexity_file(self.path, label)
        if self.text is None or self._agreed(file.is_file()):
            return
        found = {}
        weights: list[str | None] = [*variants] or [None]
        for variant in weights:
            base = adapters.active(self.learner.model, None)
            with base if variant is None else self.method.inference(self.tasks[-1].name, variant):
                found[variant or "base"] = perplexity(self.learner, self.text)
        if self.accelerator.is_main_process:
            write_atomic(file, json.dumps(found, indent=1) + "\n")

    def _scored_after(self, index: int) -> list[Task]:
        settings = self.config.evaluation
        if index == 0:
            return self.tasks if settings.zero_shot else []
        if self.config.stream == "joint":
            return self.tasks
        ahead = {"none": 0, "next": 1, "all": len(self.tasks)}[settings.unseen]
        return self.tasks[: index + ahead]

    def _say_scores(self, label: str, results: dict[str, Any]) -> None:
        row = results["variants"][results["answers_with"]]["R"][-1]
        cells = [
            f"{task.name} {100 * score:.1f}" for task, score in zip(self.tasks, row, strict=True) if score is not None
        ]
        self.display.say(f"{self.config.method.name} after {label}: {', '.join(cells)}")

    # -- results -------------------------------------------------------------------------------------------------

    def _write_results(self, *, complete: bool) -> dict[str, Any]:
        config, variants = self.config, self.method.variants
        last = self.phases[self.state.position.finished - 1]
        results: dict[str, Any] = {
            "schema": SCHEMA,
            "name": config.name,
            "method": config.method.name,
            "title": self.method.title or config.method.name,
            "method_config": config.method.model_dump(mode="json"),
            "model": config.model.name,
            "base_model": self.learner.model.peft_config["fast"].base_model_name_or_path,
            "seed": config.seed,
            "stream": config.stream,
            "complete": complete,
            "tasks": [self._task_summary(task) for task in self.tasks],
            "phases": [phase.name for phase in self.phases],
            "answers_with": variants[0],
            "variants": {},
            "perplexity": None,
            "notes": self.method.notes(),
            "cost": self._cost(),
            "adapter": f"adapters/{last.label}/{variants[0]}" if self.method.one_adapter_answers else None,
        }
        if self.accelerator.is_main_process:
            results["variants"] = score_matrix(self.path, self.phases, self.tasks, variants=variants)
            results["perplexity"] = read_perplexity(self.path, self.phases[-1].label)
            write_atomic(self.path / "results.json", json.dumps(results, ensure_ascii=False, indent=1) + "\n")
        agreed: dict[str, Any] = self._agreed(results)
        return agreed

    def _task_summary(self, task: Task) -> dict[str, Any]:
        scored = self.evaluation_sets[task.name]
        return {
            "name": task.name,
            "label": task.label,
            "metric": task.metric,
            "scoring": task.scoring,
            **{split: len(rows) for split, rows in task.rows.items()},
            "truncated": {
                "train": sum(example.cut for example in self.train_sets[task.name]),
                scored.split: scored.cut,
            },
            "dropped": dict(task.dropped),
            "source": task.source,
        }

    def _cost(self) -> dict[str, Any]:
        counters = self.state.counters
        self.state.count_passes()
        counters.peak_memory_bytes = max(counters.peak_memory_bytes, peak_memory(self.learner.device))
        return {
            "steps": counters.steps,
            "trained_tokens": counters.trained_tokens,
            "forward_rows": counters.passes["forward"],
            "backward_rows": counters.passes["backward"],
            "train_seconds": round(counters.train_seconds, 1),
            "evaluation_seconds": round(counters.evaluation_seconds, 1),
            "peak_memory_bytes": counters.peak_memory_bytes,
            "trainable_parameters": sum(p.numel() for p in self.method.trainable) if self.method.trains else 0,
            "stored_bytes": {"memory": self.learner.memory.stored_bytes(), **self.method.stored()},
        }

    def _agreed(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.accelerator.num_processes == 1:
            return value
        holder = [value]
        broadcast_object_list(holder)
        return holder[0]


def _cut_metrics(path: Path, steps: int) -> None:
    """Drop the lines of steps that will be done again (and a last line that was cut off)."""
    if not path.is_file():
        return
    kept = []
    text = path.read_text(encoding="utf-8", errors="replace")  # the last line may end within a character
    for line in text.splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            break  # the last line can be incomplete
        if step > steps:
            break
        kept.append(line)
    write_atomic(path, "".join(kept))
