"""Which tasks are learnt alone: the rule of docs/log.md for a stream that can tell methods apart.

python bench/learnt.py RUN...

RUN is a finished run of one task with `evaluation.zero_shot: true`. A task is learnt if its score beats, by three
standard errors, the base model and the constant answer: the training answer that does best on the training answers,
which is the commonest one where answers are labels. Where answers are right or wrong a standard error is √(1/4n), the
largest that a score can have; otherwise it is that of the rows' paired differences. The words with which the prompt's
text begins are a third, stricter measure of generated answers, which the rule does not ask for.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import table

from ilora.config import load_config
from ilora.data.task import Phase, Task
from ilora.errors import InputError
from ilora.metrics.metrics import METRICS
from ilora.results.reader import read_results
from ilora.results.scores import BASE, prediction_file, read_records
from ilora.stream import load_tasks

ERRORS = 3  # standard errors
HEAD = ("task", "metric", "constant", "first words", "before", "alone", "above the best", "needed", "learnt", "minutes")


def constant(answers: Sequence[str], score: Callable[[str, str], float]) -> str:
    """The answer with the best mean score against all of them; the commonest one of equals."""
    counts = Counter(answers)
    means = {one: sum(n * score(one, other) for other, n in counts.items()) for one in counts}
    return max(means, key=lambda one: (means[one], counts[one]))


def beginning(prompt: str, words: int) -> str:
    """The first words of the prompt's text, which follows its first line; of the whole prompt if it has one line."""
    text = prompt.partition("\n")[2] or prompt
    return " ".join(text.partition(": ")[2].split()[:words])


def line(folder: Path) -> list[str]:
    """A row of the table. Raises InputError for another kind of run."""
    results = read_results(folder)
    tasks = load_tasks(load_config(folder / "config.yaml").data)
    if len(tasks) != 1 or not results.get("complete"):
        raise InputError(f"{folder}: {len(tasks)} tasks; a finished run of one task is needed")
    (task,) = tasks
    before, after = (records(folder, results, stage, task) for stage in (BASE, Phase(1, task.name, (task,)).label))
    metric = METRICS[task.metric]
    answers = [row.answer for row in task.rows["train"]]
    always = constant(answers, lambda one, other: metric.score(one, other, task.choices))
    words = int(np.median([len(answer.split()) for answer in answers]))
    guesses = {
        "constant": [metric.score(always, row["reference"], task.choices) for row in after],
        "first words": [metric.score(beginning(row["prompt"], words), row["reference"], task.choices) for row in after],
        "before": [row["score"] for row in before],
    }
    return [task.name, task.metric, *judged(guesses, [row["score"] for row in after]), minutes(results)]


def judged(guesses: dict[str, list[float]], alone: list[float]) -> list[str]:
    """Scores in points, the gap to the best guess of the rule, what is needed, and the verdict."""
    means = {name: 100 * float(np.mean(scores)) for name, scores in guesses.items()}
    own = 100 * float(np.mean(alone))
    gaps = []
    for name in ("constant", "before"):
        difference = np.subtract(alone, guesses[name])
        whole = set(alone) | set(guesses[name]) <= {0, 1}
        error = 0.5 if whole else float(difference.std(ddof=1))
        gaps.append((100 * float(difference.mean()), 100 * ERRORS * error / math.sqrt(len(alone))))
    gap, needed = min(gaps, key=lambda pair: pair[0] - pair[1])
    figures = [f"{value:.1f}" for value in (*means.values(), own, gap, needed)]
    return [*figures, "yes" if all(gap >= needed for gap, needed in gaps) else "no"]


def records(folder: Path, results: dict[str, Any], stage: str, task: Task) -> list[dict[str, Any]]:
    """A prediction file's. Raises InputError where it is missing."""
    answers = results["answers_with"]
    return read_records(prediction_file(folder, stage, answers, task, answering=answers))


def minutes(results: dict[str, Any]) -> str:
    """Training and evaluation, as the clock saw them."""
    return f"{(results['cost']['train_seconds'] + results['cost']['evaluation_seconds']) / 60:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    try:
        lines = [line(folder) for folder in parser.parse_args().runs]
    except InputError as error:
        parser.error(str(error))
    print(table(HEAD, lines), end="")


if __name__ == "__main__":
    main()
