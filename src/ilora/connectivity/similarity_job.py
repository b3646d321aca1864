"""How alike two adapters are: CKA of their hidden states, angles and distances of their updates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ilora.connectivity import similarity
from ilora.connectivity import space as spaces
from ilora.connectivity.jobs import Job, Result, Settings, head, sets_of
from ilora.connectivity.landscape import Landscape
from ilora.connectivity.sources import Pair, Source, Stage, file_name
from ilora.data.examples import Example
from ilora.errors import InputError
from ilora.progress import Display

_SIMILARITY_ROWS = 64  # a task


class SimilarityJob(Job):
    """A pair's two adapters, on the tasks' rows or on a text, and the run's way from one to the other."""

    def __init__(self, pair: Pair, source: Source, settings: Settings, out: Path) -> None:
        self.pair, self.trail, self.text = pair, source.until(pair), settings.text
        name = "" if self.text is None else f"-{file_name(self.text.name)}"
        self.file = out / f"similarity-{pair.name}{name}.json"
        self.adapters = (*pair.ends, *self.trail)
        self.tasks = pair.tasks
        self.depends: dict[str, Any] = {"split": settings.split, "rows": settings.rows}
        if self.text is not None:
            self.depends["text"] = hashlib.sha256("\n".join(_text_lines(self.text)).encode()).hexdigest()
            return
        for task in self.tasks:
            have = len(task.rows[settings.split])
            if have < similarity.LEAST_ROWS:
                least = similarity.LEAST_ROWS
                raise InputError(f"--similarity: task '{task.name}' has {have} rows; CKA needs at least {least}")

    def make(self, landscape: Landscape, display: Display, before: Result | None) -> Iterator[Result]:
        """Compute all of it at once."""
        del before
        display.say(f"similarity of {self.pair.name}")
        ends, texts = self.pair.ends, self._texts(landscape)
        yield {
            **head("similarity", landscape, self.tasks, ends),
            "n": {label: len(rows) for label, rows in texts.items()},
            "cka": similarity.cka_by_layer(landscape, *ends, texts),
            "angles": similarity.update_angles(*ends),
            "distances": {where: similarity.distance(*ends, space=where) for where in spaces.common_spaces(ends)},
            "along": _along(self.trail),
        }

    def _texts(self, landscape: Landscape) -> dict[str, list[Example]]:
        """The rows to read, by the label of the task or the name of the text."""
        if self.text is not None:
            return {self.text.name: _text_rows(self.text, landscape)}
        return {
            data.task.label: similarity.sampled(data.examples, _SIMILARITY_ROWS, task=data.task.label)
            for data in sets_of(landscape, self.tasks)
        }


def _along(trail: Sequence[Stage]) -> dict[str, Any]:
    """For every variant its stages in the order of training, and the distances between them."""
    made = {}
    for variant in dict.fromkeys(stage.variant for stage in trail):
        stages = [stage for stage in trail if stage.variant == variant]
        made[variant] = {
            "label": [stage.label for stage in stages],
            "when": [stage.when for stage in stages],
            **similarity.along(stage.read() for stage in stages),
        }
    return made


def _text_lines(file: Path) -> list[str]:
    """The lines of a text that are not empty. Raises InputError where there are too few."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text: {error}") from None
    if len(lines) < similarity.LEAST_ROWS:
        raise InputError(f"{file}: {len(lines)} lines; every line is a row, and CKA needs at least "
                         f"{similarity.LEAST_ROWS}")  # fmt: skip
    return lines


def _text_rows(file: Path, landscape: Landscape) -> list[Example]:
    """A sample of the lines as prompts, cut to the length of the data."""
    encoder = landscape.encoder
    prompts = encoder.tokenizer(_text_lines(file), verbose=False).input_ids
    rows = [
        Example(file.name, f"{file.name}/{number}", encoder.cut(prompt, encoder.config.max_length), [])
        for number, prompt in enumerate(prompts)
    ]
    return similarity.sampled(rows, _SIMILARITY_ROWS, task=file.name)
