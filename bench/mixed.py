"""A stream of mixed form from data at hand: labels, numbers, short generated answers, summaries (configs/mixed.yaml).

python bench/mixed.py DATA OUT [--seed 0]

DATA holds classic/ (agnews, amazon, boolqa, sst2) and eight/ (MeetingBank, NumGLUE-cm, ScienceQA), each a folder with
{train,eval,test}.json of {"prompt", "answer"}. `sums` is that of the generated benchmark mini8. OUT gets one such
folder for each task. The same seed and data give the same files. No row of a source serves two tasks or two splits.
docs/log.md says which of them are learnt; configs/mixed.yaml takes these.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

from ilora.benchmarks.mini import mini8
from ilora.data.duplicates import key
from ilora.data.task import SPLITS, Row
from ilora.errors import InputError
from ilora.files import write_atomic

SIZES = {"train": 160, "eval": 100, "test": 150}
WORDS = 60  # of a text that the prompt shows, so that nothing is cut where max_length is 96
SUMMARY_WORDS = 15  # of a summary, which states its matter first
SUMMARY_LETTERS = 120  # longer beginnings are lists of names and numbers, of many tokens

Make = Callable[[Row], Row | None]
"""A task's row from a source's row; None where the source's row has no such parts."""


def same(row: Row) -> Row:
    """The source's row."""
    return row


def first_words(text: str, count: int = WORDS) -> str:
    """The first words, with single spaces."""
    return " ".join(text.split()[:count])


def rewritten(pattern: str, prompt: str) -> Make:
    """pattern: finds `text` and `answer` in the source's prompt. prompt: holds {text}."""
    parts = re.compile(pattern, re.DOTALL)

    def make(row: Row) -> Row | None:
        found = parts.search(row.prompt)
        if not found or not found["answer"].strip():
            return None
        return Row(prompt.format(text=first_words(found["text"])), found["answer"].strip())

    return make


headline = rewritten(
    r"Title: (?P<answer>.*?)\nText: (?P<text>.*)\nAnswer:$",
    "Write the headline of the following news.\nText: {text}\nHeadline:",
)
subject = rewritten(
    r"\npassage: (?P<answer>.*?) -- (?P<text>.*)\nAnswer:$",
    "Name the subject of the following passage.\nText: {text}\nSubject:",
)
question = rewritten(
    r"question: (?P<answer>.*?)\npassage: .*? -- (?P<text>.*)\nAnswer:$",
    "Write a question about the following passage.\nText: {text}\nQuestion:",
)


def fact(row: Row) -> Row | None:
    """The first sentence of the explanation behind the letter, for the question without its choices."""
    asked = re.search(r"Question:\n(.*?)\n\nChoices:", row.prompt, re.DOTALL)
    explanation = row.answer.partition("\n")[2].strip()
    if not asked or not explanation:
        return None
    prompt = f"What must be known to answer the following question?\nQuestion: {first_words(asked[1])}\nFact:"
    return Row(prompt, re.split(r"(?<=[.?!])\s", explanation)[0])


def summary(row: Row) -> Row | None:
    """The beginning of the summary, for the beginning of the transcript."""
    found = re.search(r"Meeting transcripts:\n(.*)\nSummary:$", row.prompt, re.DOTALL)
    if not found:
        return None
    prompt = f"Summarise the following meeting.\nTranscript: {first_words(found[1])}\nSummary:"
    answer = first_words(row.answer, SUMMARY_WORDS)
    return Row(prompt, answer) if len(answer) <= SUMMARY_LETTERS else None


SOURCES: dict[str, dict[str, Make]] = {
    "classic/sst2": {"sst2": same},
    "classic/agnews": {"agnews": same, "headline": headline},
    "classic/amazon": {"amazon": same},
    "classic/boolqa": {"subject": subject, "question": question},
    "eight/NumGLUE-cm": {"numbers": same},
    "eight/ScienceQA": {"fact": fact},
    "eight/MeetingBank": {"summary": summary},
}


def read(folder: Path) -> list[Row]:
    """All rows of a source, whatever their split. Raises InputError naming the file."""
    rows = []
    for split in SPLITS:
        file = folder / f"{split}.json"
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
            rows += [Row(entry["prompt"], entry["answer"]) for entry in entries]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f'{file}: cannot be read ({error!r}); allowed is a list of {{"prompt", "answer"}}'
            ) from None
    return rows


def usable(rows: Sequence[Row], makes: Sequence[Make], seed: int) -> list[list[Row]]:
    """Rows of every task, from source's rows that all tasks can use and of which none has a prompt twice; shuffled."""
    taken: set[bytes] = set()
    found = []
    for row in sorted(rows, key=lambda row: blake2b(f"{seed}\n{row.prompt}".encode()).digest()):
        made = [other for make in makes if (other := make(row))]
        keys = set(map(key, made))
        if len(made) == len(makes) and not keys & taken:
            taken |= keys
            found.append(made)
    return found


def dealt(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The three splits: SIZES, or that share of too few rows."""
    share = min(1, len(rows) / sum(SIZES.values()))
    splits, start = {}, 0
    for split, size in SIZES.items():
        end = start + int(size * share)
        splits[split], start = list(rows[start:end]), end
    return splits


def tasks_of(data: Path, seed: int) -> dict[str, dict[str, list[Row]]]:
    """Rows by task and split. The tasks of a source get consecutive parts of it, of equal size."""
    tasks = {}
    for source, makes in SOURCES.items():
        rows = usable(read(data / source), list(makes.values()), seed)
        part = len(rows) // len(makes)
        for place, name in enumerate(makes):
            tasks[name] = dealt([made[place] for made in rows[place * part : (place + 1) * part]])
    sums = next(task for task in mini8(seed=seed, **SIZES) if task.name == "sums")
    return tasks | {"sums": {split: list(sums.rows[split]) for split in SPLITS}}


def main() -> None:
    """Write the folders and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        tasks = tasks_of(args.data, args.seed)
    except InputError as error:
        parser.error(str(error))
    for name, splits in tasks.items():
        (args.out / name).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            entries = [{"prompt": row.prompt, "answer": row.answer} for row in rows]
            write_atomic(args.out / name / f"{split}.json", json.dumps(entries, ensure_ascii=False, indent=0) + "\n")
        print(f"{name}: {', '.join(f'{len(rows)} {split}' for split, rows in splits.items())}")


if __name__ == "__main__":
    main()
