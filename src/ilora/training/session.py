"""One method on one stream: train a task, save its adapters, evaluate, next task. It can be stopped anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ilora.config import Config
from ilora.data.examples import Example
from ilora.data.task import Phase, Task
from ilora.errors import InputError
from ilora.methods import method_class
from ilora.methods.base import Method
from ilora.methods.view import Position, RunView
from ilora.model.load import GivenModel
from ilora.model.sharded import in_all, refuse_unlike
from ilora.progress import ANSWERS, STEPS, Display
from ilora.replay.memory import ReplayMemory
from ilora.results.reader import ended_early, near_chance
from ilora.training import keep, trajectory
from ilora.training.beginning import begin_from, refuse_deleted_rows, retire_replaced
from ilora.training.divergence import DivergenceWatch, diverged
from ilora.training.encoded import EncodedStream
from ilora.training.evaluating import StreamEvaluator
from ilora.training.expected import say_expected
from ilora.training.folder import RunFolder
from ilora.training.interrupt import StopRequest
from ilora.training.loading import keep_states_below, load_engine
from ilora.training.loop import Plan, StepReport, optimizer_step
from ilora.training.optim import made_anew, make_optimizer
from ilora.training.peak import peak_memory, reset_peak_memory
from ilora.training.room import telling_of_halves
from ilora.training.state import Progress, State
from ilora.training.summary import summarise_run
from ilora.training.validation import steps_taken, validation_loss


class Session:
    """One method at work in the run folder `path`.

    stream: the rows, encoded once.
    method: what learns; its engine computes.
    state: all that moves, and that a checkpoint holds.
    now: the configuration of the phase in work, with what the tasks up to it change.
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
        given: GivenModel | None = None,
    ) -> None:
        """answers_of_base: the base model's predictions, where another run on the same stream has them already.

        given: the base model, where it need not be loaded.
        """
        self.config, self.now, self.path, self.accelerator = config, config, path, accelerator
        self.display, self.stop = display, stop
        self.answers_of_base, self.given = answers_of_base, given
        reset_peak_memory(accelerator.device)
        display.say(f"{config.method.name}: loading {config.model.name}")
        engine, encoder = load_engine(config, accelerator, given, tasks=len(tasks))
        self.stream = in_all(lambda: EncodedStream.of(config, tasks, encoder))
        for line in (
            *engine.notices,
            *self.stream.templates(config.method.name),
            *map("warning: {}".format, self.stream.warnings()),
        ):
            display.say(line)
        memory = ReplayMemory(config.method.memory_capacity, seed=config.seed)
        started = config.adapter.start_from is not None
        run = RunView(engine, memory, config.training, Position(seed=config.seed), started=started)
        kind = method_class(config.method.name)
        if config.adapter.keep_below:
            title = f"{config.method.name}: states below the adapter"
            sets = self.stream.read_by_engine(training=kind.trains)
            keep_states_below(engine, sets, title=title, display=display, stop=stop)
        self.method: Method[Any] = kind(run, config.method)
        self.state = State(config, tasks, self.method, make_optimizer(self.method.trainable, config.training))
        self.watch = DivergenceWatch(engine.model.config.get_text_config().vocab_size)
        self.folder = RunFolder(path, accelerator)
        self.evaluator = StreamEvaluator(config, path, self.stream, self.method, display=display, stop=stop)

    def execute(self) -> dict[str, Any]:
        """Do all that is left of the run; returns the content of results.json."""
        self.restore()
        self.method.engine.model.train()
        finished, total = self.state.progress.finished, len(self.stream.phases)
        title = f"{self.config.method.name}: whole run"
        with self.display.bar(title, total, done=finished, ahead=self._work_ahead()) as bar:
            self.evaluate(0)
            if finished and self.state.progress.ended:
                self.evaluate(finished)
            for phase in self.stream.phases[finished:]:
                self.train(phase)
                self.evaluate(phase.index)
                self._save_checkpoint()  # with what the evaluation has cost
                self._drop_surplus(complete=False)
                bar.advance()
        results = self._write_results(complete=True)
        self._drop_surplus(complete=True)
        return results

    def _work_ahead(self) -> dict[str, int]:
        """How much the rest of the run is, by the kinds of its bars."""
        progress = self.state.progress
        steps = sum(self.plan(phase).steps for phase in self.stream.phases[progress.finished :])
        evaluations = {0, *range(max(progress.finished, 1), len(self.stream.phases) + 1)}
        return {
            STEPS: steps - (0 if progress.ended else progress.task_step),
            ANSWERS: sum(map(self.evaluator.missing_rows, evaluations)),
        }

    def release(self) -> None:
        """Take the adapters out of a base model that was given, so that it can be used again."""
        if self.given is not None:
            self.method.engine.model.unload()

    def refuse_changes(self) -> None:
        """Raises InputError, in every process, if configuration or data differ from those of the folder's checkpoint.

        They must be the same in every process, too. Without a checkpoint, what the run starts from is taken up.
        """
        refuse_unlike(self.accelerator, self.state.read)
        in_all(self._refuse_changes)

    def _refuse_changes(self) -> None:
        found, damaged = self.folder.load_checkpoint()
        if found is None:
            self.folder.refuse_to_lose_results(damaged=bool(damaged))
            refuse_deleted_rows(self.path, self.stream.tasks)
            self.state.start = begin_from(self.config, self.method, self.stream.encoder)
        else:
            try:
                self.state.refuse_changes(found)
            except InputError as error:
                raise InputError(f"{self.path}: {error}") from None

    def restore(self) -> None:
        """Take up the newest sound checkpoint, or begin."""
        found, damaged = self.folder.load_checkpoint()
        for message in damaged.values():
            then = "going on from the one before" if found else "there is none before it, beginning again"
            self.display.warn(f"{message}; {then}")
        if found is not None:
            self.state.refuse_changes(found)
            self._settle(found.values["position"]["phase"])  # before the memory is filled: how large it was then
            self.state.restore(found)
            done = self.state.progress
            where = "after" if done.ended else f"after step {done.task_step} of"
            last = len(self.stream.phases)
            name = self.config.method.name
            finished = f"{name}: finished: all {last} tasks are trained; only what is missing is measured"
            going_on = f"{name}: going on {where} task {done.phase} of {last}"
            self.display.say(finished if done.finished == last else going_on)
        self.accelerator.wait_for_everyone()
        self.folder.go_back(self.state.counters.steps, list(damaged))
        if found is None:
            if self.method.trains:
                plans = [self.plan(phase) for phase in self.stream.phases]
                say_expected(self.method, self.config, self.stream, plans, self.path, self.display)
            self.folder.clear(self.answers_of_base)
            self._save_checkpoint()  # so that configuration and data are compared from the first resume on

    # -- training ------------------------------------------------------------------------------------------------

    def plan(self, phase: Phase) -> Plan:
        """The order of a phase's rows."""
        config, rows = self.config.at(phase.index).training, len(self.stream.rows(phase))
        epochs = config.epochs if self.method.trains else 0
        return Plan(self.config.seed, phase.name, rows, config.global_batch_size, epochs, config.max_steps)

    def train(self, phase: Phase) -> None:
        """Train a phase to its end, from where the last checkpoint left it, and save its adapters."""
        self._settle(phase.index)
        rows, plan = self.stream.rows(phase), self.plan(phase)
        self.method.run.rows = rows
        if self.state.progress.ended:  # else: resumed inside this phase, everything is as it was
            self._begin(phase, plan)
        self._take_steps(phase, plan, rows)
        self._end(phase, plan)

    def _settle(self, phase: int) -> None:
        """Go over to the settings of phase `phase`."""
        self.now = self.config.at(phase)
        self.method.config, self.method.run.training = self.now.method, self.now.training
        self.method.memory.resize(self.now.method.memory_capacity)

    def _begin(self, phase: Phase, plan: Plan) -> None:
        self.state.progress = Progress(phase.index, task_step=0, ended=False)
        self._move_to(phase, plan, step=0, epoch=0)
        retire_replaced(self.method, phase, self.stream)
        with self._training_time():
            self.method.begin_task()
        if made_anew(self.config, phase.index, fresh_start=self.method.fresh_start):
            self.state.optimizer = make_optimizer(self.method.trainable, self.now.training)
        rule = self.now.training.stop_when
        if rule is not None and 0 < plan.steps <= rule.earliest:
            self.display.say(
                f"warning: {phase.name} has {plan.steps} steps, and training.stop_when can end it after "
                f"{rule.earliest} at the earliest; a smaller `every` measures more often"
            )

    def _take_steps(self, phase: Phase, plan: Plan, rows: Sequence[Example]) -> None:
        config, progress = self.now.training, self.state.progress
        parts = 0 if self.config.keep.trajectory == "none" else config.trajectory
        snapshots = trajectory.due(plan.steps, parts)
        held_out = self.stream.validation_rows(phase) if config.stop_when else []
        title = f"training {phase.index}/{len(self.stream.phases)} {phase.name}"
        with self.display.bar(title, plan.steps, done=progress.task_step, kind=STEPS) as bar:
            for step, epoch, numbers in plan.batches(first=progress.task_step + 1):
                if config.stop_when and config.stop_when.reached(progress.validation):
                    break
                self._move_to(phase, plan, step=step, epoch=epoch)
                note = self._step([rows[number] for number in numbers], held_out)
                bar.advance(note=note, line=step % (config.log_every or plan.steps + 1) == 0)
                if step in snapshots:
                    self.folder.save_snapshot(self.method, phase.label)
                due = step % config.checkpoint_every == 0 and step < plan.steps
                if self.stop.requested or (due and not self.watch.doubtful):
                    self._save_checkpoint()
                self.stop.check()

    def _end(self, phase: Phase, plan: Plan) -> None:
        taken, losses = self.state.progress.task_step, self.state.progress.validation
        self._move_to(phase, plan, step=taken, epoch=plan.epoch(taken))
        with self._training_time():
            self.method.end_task()
        self.state.progress.ended = True
        steps = steps_taken(self.now.training.stop_when, losses, taken=taken, planned=plan.steps)
        self.state.counters.phase_steps[phase.label] = steps
        for note in ended_early({phase.label: steps}):
            self.display.say(f"{self.config.method.name}: {note}")
        checkpoint = self.state.checkpoint()  # first, since it refuses weights that are not finite
        self.folder.save_adapters(self.method, phase.label)
        self.folder.save_checkpoint(checkpoint)

    def _move_to(self, phase: Phase, plan: Plan, *, step: int, epoch: int) -> None:
        """Tell the method where it is: at a phase's `step` (0: before the first one)."""
        run, done = self.method.run, self.state.counters.steps - self.state.progress.task_step
        run.position = replace(
            run.position,
            task=phase.name,
            task_index=phase.index,
            current_tasks=frozenset(task.name for task in phase.tasks),
            task_step=step,
            task_steps=plan.steps,
            epoch=epoch,
            step=done + step,
        )

    @contextmanager
    def _training_time(self) -> Iterator[None]:
        """What a method does at a task's ends, and the validation loss, are part of the training time."""
        began = time.perf_counter()
        with telling_of_halves(self.method.engine, self.display):
            yield
        self.state.counters.train_seconds += time.perf_counter() - began

    def _step(self, examples: list[Example], held_out: Sequence[Example]) -> str:
        """Take one optimizer step and log it; returns what the bar shows of it.

        held_out: the rows for the validation loss, where it is measured.
        """
        began = time.perf_counter()
        with telling_of_halves(self.method.engine, self.display):
            report = optimizer_step(self.method, self.state.optimizer, examples)
        counters, position = self.state.counters, self.method.position
        loss = report.terms.get("ce", report.loss)
        self.watch.check(loss, self.method.trainable, position, report.learning_rate)
        seconds = time.perf_counter() - began
        self.state.progress.task_step, counters.steps = position.task_step, position.step
        counters.trained_tokens += report.tokens
        counters.train_seconds += seconds
        self._log(report, seconds, self._validate(held_out, report.learning_rate))
        return f"loss {report.loss:.3f}  {report.tokens / seconds:.0f} tokens/s{self._validation_note}"

    def _validate(self, rows: Sequence[Example], rate: float) -> dict[str, float]:
        """Measure the validation loss where that is due; returns what it adds to the step's line in metrics.jsonl."""
        rule, progress = self.now.training.stop_when, self.state.progress
        if rule is None or progress.task_step % rule.every:
            return {}
        with self._training_time():
            loss = validation_loss(self.method, rows)
        if not math.isfinite(loss):
            raise diverged(f"the validation loss is not finite ({loss})", self.method.position, rate)
        progress.validation.append(loss)
        return {"validation_loss": loss}

    @property
    def _validation_note(self) -> str:
        losses = self.state.progress.validation
        return f"  validation {losses[-1]:.3f}" if losses else ""

    def _log(self, report: StepReport, seconds: float, measured: dict[str, float]) -> None:
        position, peak = self.method.position, peak_memory(self.accelerator.device)
        line = report.line(position, seconds, time=self.state.counters.train_seconds, peak=peak) | measured
        self.folder.log(line)
        if self.accelerator.trackers:
            numbers = {key: value for key, value in line.items() if isinstance(value, float | int)}
            terms = {f"terms/{name}": value for name, value in report.terms.items()}
            self.accelerator.log(numbers | terms, step=position.step)

    def _save_checkpoint(self) -> None:
        self.folder.save_checkpoint(self.state.checkpoint())

    def _drop_surplus(self, *, complete: bool) -> None:
        """Drop what the rule `keep` does not keep."""
        method = self.method
        reached = keep.Reached(self.state.progress.finished, complete, method.variants[0], method.one_adapter_answers)
        self.folder.keep_to(self.config.keep, reached)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(self, index: int) -> None:
        """Make the measurements after phase `index` (0: the base model) that are missing, and print the scores."""
        began = time.perf_counter()
        scored = self.evaluator.evaluate(index)
        self.state.counters.evaluation_seconds += time.perf_counter() - began
        if scored and index:
            results = self._write_results(complete=False)
            self._say_scores(self.evaluator.label(index), results)
            notes = near_chance(results)
            for task in self.stream.phases[index - 1].tasks:
                if task.name in notes:
                    self.display.say(f"warning: {self.config.method.name}: {notes[task.name]}")

    def _say_scores(self, label: str, results: dict[str, Any]) -> None:
        pairs = zip(self.stream.tasks, results["variants"][results["answers_with"]]["R"][-1], strict=True)
        scores = [f"{task.name} {100 * score:.1f}" for task, score in pairs if score is not None]
        self.display.say(f"{self.config.method.name} after {label}: {', '.join(scores)}")

    def _write_results(self, *, complete: bool) -> dict[str, Any]:
        results = summarise_run(self.config, self.path, self.stream, self.state, complete=complete)
        self.folder.write_results(results)
        return results
