"""`mini8`: eight small generated tasks, shaped like a stream of real ones but short enough for two CPU cores.

    stance   C-STANCE     three labels       sums    NumGLUE-cm   a number
    tone     FOMC         three labels       plain   20Minuten    a plainer sentence
    minutes  MeetingBank  a short summary    clinic  MedMCQA      a letter, K to M
    science  ScienceQA    a letter, A to C,  law     JEC-QA       a letter, P to R
                          and the reason

Every task has its own answer convention, so that learning the next one overwrites the last. The lettered options
keep their order: a model of 135M parameters does not learn to read shuffled ones from a few hundred rows. One row in
ten is disputed: it has the answer of another row, in every split. So no task can be solved to the last row, as no real
one can, and a method that keeps more has room to show it.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ilora.benchmarks.base import BENCHMARKS
from ilora.data.task import SPLITS, Row, Task
from ilora.errors import InputError

DISPUTED = 0.1  # share of rows with the answer of another row
_MOST_MISSES = 1000  # draws in a row without a new row of the split, after which a recipe counts as used up

# Words that several tasks share.
NAMES = tuple(
    "Ada Ben Cara Dan Eva Finn Gina Hugo Iris Jack Kate Liam Mia Noah Olga Paul Rosa Sam Tina Vera "
    "Amir Bea Carl Dora Emil Faye Gus Hana Ivan June Karl Lena Max Nina Omar Pia Rob Sara Tom Wei".split()
)
WHEN = ("last week", "last month", "this year", "in March", "in June", "on Monday", "on Friday", "today")

# stance: what is written about a target, by label.
TARGETS = (
    "solar farms", "night trains", "school uniforms", "electric cars", "city parks", "free buses", "wind mills",
    "toll roads", "bike lanes", "food chains", "video games", "zoos", "speed cameras", "street murals", "paper books",
    "tall towers",
)  # fmt: skip
REMARKS = {
    "supports": (
        "are a wonderful idea", "make life better", "deserve more money", "are worth every cent",
        "have won me over", "should be everywhere", "cannot come soon enough", "keep us healthy",
    ),
    "opposes": (
        "are a terrible idea", "make life worse", "deserve no money", "are a waste of time",
        "have let me down", "should be banned", "cannot go soon enough", "keep us poor",
    ),
    "unclear": (
        "are on the news today", "came up at lunch", "are listed on page four", "were counted again",
        "have a long history", "will be discussed", "are covered in class", "make up a chapter",
    ),
}  # fmt: skip

# tone: what is said at a central bank, by label.
SPEAKERS = ("The committee", "One member", "The board", "The chair", "Most officials", "The staff", "A governor")
SIGNALS = {
    "hawkish": (
        "wanted higher rates", "feared rising inflation", "called for tighter policy", "saw prices overheating",
        "backed a rate increase", "warned of wage pressure",
    ),
    "dovish": (
        "wanted lower rates", "feared rising unemployment", "called for easier policy", "saw demand weakening",
        "backed a rate cut", "warned of a recession",
    ),
    "flat": (
        "thanked the guests", "approved the calendar", "reviewed the data tables", "kept policy unchanged",
        "described the survey method", "moved to the next item",
    ),
}  # fmt: skip

# minutes: what a council decides about, and the month that it puts things off to.
ITEMS = (
    "parking fees", "park lights", "bus lanes", "noise rules", "library hours", "water rates", "street trees",
    "market stalls", "school meals", "dog parks", "bike racks", "snow removal", "tax relief", "fire stations",
    "road repairs", "flood walls",
)  # fmt: skip
MONTHS = ("January", "March", "April", "May", "June", "July", "August", "October")

# science: things (all after the article "a"), by the reason that the answer gives.
THINGS = {
    "It eats.": (
        "whale", "horse", "rabbit", "tiger", "goat", "wolf", "falcon", "robin", "parrot", "trout", "salmon", "shark",
        "beetle", "moth", "wasp", "frog",
    ),
    "It has roots.": (
        "larch", "pine", "maple", "birch", "willow", "fern", "rose", "tulip", "daisy", "cactus", "thistle", "palm",
        "poppy", "clover", "lily", "vine",
    ),
    "It was built.": (
        "pump", "motor", "crane", "drill", "tractor", "mixer", "lathe", "robot", "printer", "turbine", "truck",
        "radio", "laptop", "fan", "lamp", "bus",
    ),
}  # fmt: skip

# sums: things with a number of parts that everybody knows.
PARTS = (
    ("bicycles", "wheels", 2), ("hens", "legs", 2), ("people", "eyes", 2), ("dogs", "legs", 4), ("cars", "wheels", 4),
    ("squares", "sides", 4), ("hands", "fingers", 5), ("decades", "years", 10),
)  # fmt: skip

# plain: the four parts of a stiff sentence, each with its plain form.
ACTORS = {
    "The municipality": "The town", "The physician": "The doctor", "The adolescents": "The teenagers",
    "The attorney": "The lawyer", "The purchasers": "The buyers", "The constabulary": "The police",
    "The instructor": "The teacher", "The proprietor": "The owner", "The legislators": "The lawmakers",
    "The infant": "The baby", "The spouse": "The wife", "The vocalist": "The singer",
}  # fmt: skip
ACTIONS = {
    "will terminate": "will end", "will demonstrate": "will show", "will purchase": "will buy",
    "will construct": "will build", "will relinquish": "will give up", "will inspect": "will check",
    "will acquire": "will get", "will modify": "will change", "will conceal": "will hide",
    "will retain": "will keep", "will transport": "will carry", "will obliterate": "will destroy",
}  # fmt: skip
OBJECTS = {
    "the residence": "the house", "the vehicle": "the car", "the apparatus": "the machine",
    "the documentation": "the papers", "the remuneration": "the pay", "the excursion": "the trip",
    "the edifice": "the building", "the nourishment": "the food", "the attire": "the clothes",
    "the beverage": "the drink", "the currency": "the money", "the thoroughfare": "the road",
}  # fmt: skip
MANNERS = {
    "subsequently": "later", "expeditiously": "fast", "at present": "now", "prior to noon": "before noon",
    "on numerous occasions": "often", "in the near future": "soon", "without cessation": "always",
    "in the interim": "meanwhile",
}  # fmt: skip

# clinic: made-up illnesses, by the letter of their treatment (K: pill, L: cream, M: rest).
ILLNESSES = {
    "K": ("velmora", "crasitis", "dunfever"),
    "L": ("morbex", "pelloma", "quarnia"),
    "M": ("tirrea", "ubelgia", "wexpox"),
}

# law: acts, by the letter of their made-up penalty ([P] fine [Q] prison [R] service).
ACTS = {
    "P": ("parked on the bridge", "fished without a permit", "lost the town key"),
    "Q": ("forged a seal", "robbed the mill", "sold false gold"),
    "R": ("broke a window", "skipped jury duty", "painted the wall"),
}


def draw_stance(rng: random.Random, turn: int) -> Row:
    """A remark about a target: for it, against it, or neither."""
    label, remark = pick(REMARKS, rng, turn)
    return Row(f"On {rng.choice(TARGETS)}, {rng.choice(NAMES)} wrote: they {remark}. Stance? Answer:", label)


def draw_tone(rng: random.Random, turn: int) -> Row:
    """A sentence of a central bank: toward tighter policy, toward easier policy, or neither."""
    label, signal = pick(SIGNALS, rng, turn)
    said = f"{rng.choice(SPEAKERS)} {signal} {rng.choice(WHEN)}"
    return Row(f"{said}, {rng.choice(NAMES)} noted. Policy tone? Answer:", label)


def draw_minutes(rng: random.Random, turn: int) -> Row:
    """The minutes of one item, to be summed up in a sentence; who won follows from the votes."""
    item = rng.choice(ITEMS)
    opening = f"Item on {item}, moved by {rng.choice(NAMES)}:"
    if turn % 3 == 0:
        month = rng.choice(MONTHS)
        return Row(f"{opening} put off to {month}. Summary:", f"Council delayed {item} to {month}.")
    ayes, nays = sorted(rng.sample(range(10), 2), reverse=turn % 3 == 1)
    verb = "passed" if ayes > nays else "rejected"
    return Row(f"{opening} ayes {ayes}, nays {nays}. Summary:", f"Council {verb} {item}, {ayes} to {nays}.")


def draw_science(rng: random.Random, turn: int) -> Row:
    """What kind of thing it is: a letter, and the reason on the next line."""
    reason, thing = pick(THINGS, rng, turn)
    drew = f"{rng.choice(NAMES)} drew a {thing} {rng.choice(WHEN)}"
    prompt = f"(A) animal (B) plant (C) machine? {drew}. Which is a {thing}? Answer:"
    return Row(prompt, f"{'ABC'[turn % 3]}\n{reason}")


def draw_sums(rng: random.Random, turn: int) -> Row:
    """A multiplication whose second factor is common knowledge."""
    things, parts, each = PARTS[turn % len(PARTS)]
    count = rng.randint(2, 5)
    asked = f"{rng.choice(NAMES)} asked {rng.choice(WHEN)}"
    return Row(f"{asked}: how many {parts} do {count} {things} have? Answer:", str(count * each))


def draw_plain(rng: random.Random, _turn: int) -> Row:
    """A stiff sentence, to be said in plain words."""
    parts = [rng.choice(tuple(table.items())) for table in (ACTORS, ACTIONS, OBJECTS, MANNERS)]
    stiff = " ".join(part[0] for part in parts)
    return Row(f"{stiff}. Simple:", " ".join(part[1] for part in parts) + ".")


def draw_clinic(rng: random.Random, turn: int) -> Row:
    """The treatment of a made-up illness: to be learnt by heart."""
    letter, illness = pick(ILLNESSES, rng, turn)
    patient = f"{rng.choice(NAMES)}, aged {rng.randint(20, 80)}"
    return Row(f"{patient}, has {illness}. K: pill, L: cream, M: rest. Answer:", letter)


def draw_law(rng: random.Random, turn: int) -> Row:
    """The penalty of an act under made-up rules: to be learnt by heart."""
    letter, act = pick(ACTS, rng, turn)
    return Row(f"{rng.choice(NAMES)} {act} {rng.choice(WHEN)}. [P] fine [Q] prison [R] service. Answer:", letter)


def pick(table: Mapping[str, tuple[str, ...]], rng: random.Random, turn: int) -> tuple[str, str]:
    """A key of the table, each in its turn so that all are equally frequent, and one of its words."""
    key = tuple(table)[turn % len(table)]
    return key, rng.choice(table[key])


@dataclass(frozen=True)
class Recipe:
    """How the rows of one task are drawn (from a generator and the number of rows before) and judged."""

    name: str
    draw: Callable[[random.Random, int], Row]
    metric: str
    max_new_tokens: int
    choices: tuple[str, ...] = ()


RECIPES = (
    Recipe("stance", draw_stance, "accuracy", 4, tuple(REMARKS)),
    Recipe("tone", draw_tone, "accuracy", 5, tuple(SIGNALS)),
    Recipe("minutes", draw_minutes, "rouge_l", 16),
    Recipe("science", draw_science, "accuracy", 8, ("A", "B", "C")),
    Recipe("sums", draw_sums, "number", 4),
    Recipe("plain", draw_plain, "rouge_l", 16),
    Recipe("clinic", draw_clinic, "accuracy", 3, tuple(ILLNESSES)),
    Recipe("law", draw_law, "accuracy", 3, tuple(ACTS)),
)


@BENCHMARKS("mini8")
def mini8(*, seed: int = 0, train: int = 160, eval: int = 32, test: int = 32, disputed: float = DISPUTED) -> list[Task]:
    """The eight tasks in their order. A longer split begins with the rows of the shorter one of the same seed."""
    sizes = {"train": train, "eval": eval, "test": test}
    return [
        Task(
            recipe.name,
            {
                split: [dispute(row, recipe, disputed) for row in draw_rows(recipe, seed, split, sizes[split])]
                for split in SPLITS
            },
            recipe.metric,
            recipe.choices,
            max_new_tokens=recipe.max_new_tokens,
            source="mini8",
        )
        for recipe in RECIPES
    ]


def draw_rows(recipe: Recipe, seed: int, split: str, size: int) -> list[Row]:
    """`size` rows with distinct prompts. Once a recipe has no new ones, its prompts get a case number."""
    if size < 0:
        raise InputError(f"mini8: {split} must be 0 or more, not {size}")
    rng = random.Random(f"{seed}/{recipe.name}/{split}")
    rows: dict[str, Row] = {}
    misses = 0
    while len(rows) < size:
        row = recipe.draw(rng, len(rows))
        if misses >= _MOST_MISSES:
            row = Row(f"Case {rng.randrange(10**9)}: {row.prompt}", row.answer)
        if row.prompt not in rows and split_of(row.prompt) == split:
            rows[row.prompt] = row
            misses = misses if misses >= _MOST_MISSES else 0  # once used up, it stays so
        else:
            misses += 1
    return list(rows.values())


def dispute(row: Row, recipe: Recipe, share: float) -> Row:
    """The row; with probability `share` it gets the answer of another row. The prompt alone decides."""
    rng = random.Random(f"disputed/{row.prompt}")
    if rng.random() >= share:
        return row
    others = (recipe.draw(rng, rng.randrange(24)).answer for _ in itertools.count())
    return Row(row.prompt, next(answer for answer in others if answer != row.answer))


def split_of(prompt: str) -> str:
    """The only split that may have this prompt, whatever the seed: one prompt in ten is for eval, one for test."""
    return {0: "eval", 1: "test"}.get(zlib.crc32(prompt.encode()) % 10, "train")
