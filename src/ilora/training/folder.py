"""The files that a run writes while it trains. The first process writes, and no file is ever incomplete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from ilora.errors import IloraError, InputError
from ilora.files import append_line, flush_folder, flush_tree, write_atomic
from ilora.keeping import KeepConfig
from ilora.methods.base import Method
from ilora.results.reader import read_results
from ilora.results.scores import BASE, prediction_folder
from ilora.training import checkpoint as checkpoints
from ilora.training import keep, trajectory
from ilora.training.checkpoint import Checkpoint
from ilora.training.keep import Reached
from ilora.training.processes import on_main


class RunFolder:
    """The checkpoints, adapters, trajectory and metrics.jsonl of one method's run."""

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator

    @property
    def _main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    # -- written along the way ------------------------------------------------------------------------------------

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if self._main:
            append_line(self.path / "metrics.jsonl", json.dumps(line, ensure_ascii=False))

    def save_snapshot(self, method: Method[Any], phase: str) -> None:
        """The adapters in the middle of a task, for the trajectory."""
        if self._main:
            trajectory.write(self.path / "trajectory", method, phase=phase)

    def save_checkpoint(self, content: Checkpoint) -> None:
        """The next numbered checkpoint. Raises IloraError where the disk is full."""
        on_main(self.accelerator, lambda: checkpoints.save(self.path / "checkpoints", content))

    def save_adapters(self, method: Method[Any], phase: str) -> None:
        """adapters/<phase>/<variant>, ordinary PEFT folders, complete or not there. Raises IloraError."""
        method.engine.rejoin()

        def save() -> None:
            final = self.path / "adapters" / phase
            scratch = final.with_name(f".{final.name}-writing")
            shutil.rmtree(scratch, ignore_errors=True)
            try:
                method.save(scratch)
                if method.engine.base is not None:
                    for variant in (path for path in scratch.iterdir() if path.is_dir()):
                        method.engine.base.write(variant)
                flush_tree(scratch)
                shutil.rmtree(final, ignore_errors=True)
                scratch.rename(final)
                flush_folder(final.parent)
            except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
                shutil.rmtree(scratch, ignore_errors=True)
                raise IloraError(f"{final}: cannot write the adapters: {error}") from error

        on_main(self.accelerator, save)

    def write_results(self, results: dict[str, Any]) -> None:
        """results.json."""
        text = json.dumps(results, ensure_ascii=False, indent=1) + "\n"
        on_main(self.accelerator, lambda: write_atomic(self.path / "results.json", text))

    def keep_to(self, rule: KeepConfig, reached: Reached) -> None:
        """Drop what the rule does not keep, or write it smaller."""
        on_main(self.accelerator, lambda: keep.drop(self.path, keep.surplus(self.path, rule, reached)))

    # -- going back to a checkpoint -------------------------------------------------------------------------------

    def load_checkpoint(self) -> tuple[Checkpoint | None, dict[Path, str]]:
        """The newest sound checkpoint (None: there is none), and what is wrong with each one passed over."""
        return checkpoints.load_latest(self.path / "checkpoints")

    def refuse_to_lose_results(self, *, damaged: bool) -> None:
        """Raises InputError where beginning again, without a checkpoint, would delete what a run has left.

        damaged: there are checkpoints, and none is sound. A run that is not finished then makes the same again.
        """
        file = self.path / "results.json"
        finished = file.is_file() and bool(read_results(self.path).get("complete"))
        if finished or (not damaged and any((self.path / "adapters").glob("*"))):
            raise InputError(
                f"{self.path}: its checkpoints are {'damaged' if damaged else 'missing'}, and to begin again would "
                "delete its results and adapters. Put checkpoints/ back, or start a new run; what is there can be used "
                "and compared"
            )

    def go_back(self, steps: int, damaged: list[Path]) -> None:
        """Set damaged checkpoints aside, and drop what was written of later steps, which will be done again."""
        if self._main:
            for path in damaged:
                checkpoints.set_aside(path)
            cut_metrics(self.path / "metrics.jsonl", steps)
            trajectory.cut(self.path / "trajectory", steps)
            keep.finish_dropping(self.path)

    def clear(self, answers_of_base: Path | None) -> None:
        """Remove all results: a run that begins again keeps nothing from other weights, settings or data.

        answers_of_base: a folder with the base model's predictions, to be copied in place of new ones.
        """
        if not self._main:
            return
        for name in ("predictions", "adapters", "trajectory"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "results.json").unlink(missing_ok=True)
        if answers_of_base is not None and answers_of_base.is_dir():
            scratch = self.path / ".base-writing"
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(answers_of_base, scratch)
            flush_tree(scratch)
            (self.path / "predictions").mkdir()
            scratch.rename(prediction_folder(self.path, BASE))
            flush_folder(self.path / "predictions")


def cut_metrics(path: Path, steps: int) -> None:
    """Drop the lines of metrics.jsonl that are of later steps, and a last line that was cut off."""
    if not path.is_file():
        return
    kept = []
    text = path.read_text(encoding="utf-8", errors="replace")  # the last line may end within a character
    for line in text.splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            break
        if step > steps:
            break
        kept.append(line)
    write_atomic(path, "".join(kept))
