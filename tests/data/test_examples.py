"""From rows to token ids to batches, with tokenizers so small that every id is known by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ilora.data.encoding import Encoder, cut_prompt
from ilora.data.examples import IGNORED, Count, Example, Totals, collate
from ilora.data.task import Row, Task
from ilora.errors import InputError
from ilora.settings import DataConfig

BOS, EOS, PAD = 0, 1, 2
WORDS = {"<s>": BOS, "</s>": EOS, "<pad>": PAD, "?": 3}
WORDS |= {word: number for number, word in enumerate("a b c d e f g h yes no . user :".split(), 4)}


def ids(text: str) -> list[int]:
    return [WORDS.get(word, 3) for word in text.split()]


def tokenizer(*, pad: str | None = None, post: str = "$A") -> Any:
    """One id a word; `post` says what is put round every text."""
    words = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=post, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token=pad)


def encoder(tokens: Any = None, **settings: Any) -> Encoder:
    return Encoder(tokens or tokenizer(), DataConfig(benchmark="mini8", **{"max_length": 16} | settings))


def task(*rows: Row, **settings: Any) -> Task:
    return Task("Some Task", {"train": list(rows)}, **settings)


def encode(row: Row, tokens: Any = None, **settings: Any) -> Example:
    (example,) = encoder(tokens, **settings).encode(task(row), "train")
    return example


def example(prompt: Sequence[int], answer: Sequence[int], *, replayed: bool = False) -> Example:
    return Example("t", "t/train/0", list(prompt), list(answer), replayed=replayed)


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pad", "number"), [(None, EOS), ("</s>", EOS), ("<pad>", PAD)])
def test_only_the_answer_and_its_end_are_learnt(pad: str | None, number: int) -> None:
    made = encoder(tokenizer(pad=pad))
    assert made.pad == number
    examples = made.encode(task(Row("a b c", "yes"), Row("d", "no .")), "train")
    assert [(row.task, row.id, row.prompt, row.answer) for row in examples] == [
        ("Some Task", "some-task/train/0", ids("a b c"), [*ids("yes"), EOS]),
        ("Some Task", "some-task/train/1", ids("d"), [*ids("no ."), EOS]),
    ]
    batch = collate(examples, pad=made.pad)
    assert batch.labels.tolist() == [
        [IGNORED, IGNORED, IGNORED, *ids("yes"), EOS],
        [IGNORED, IGNORED, *ids("no ."), EOS],
    ]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_collate_by_hand() -> None:
    long, short = example([5, 6, 7], [8, EOS]), example([9], [EOS], replayed=True)
    batch = collate([long, short], pad=PAD)
    assert batch.examples == [long, short]
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, EOS], [PAD, PAD, PAD, 9, EOS]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch.labels.tolist() == [[IGNORED] * 3 + [8, EOS], [IGNORED] * 4 + [EOS]]
    assert batch.replayed.tolist() == [False, True]
    assert batch.replayed.dtype == torch.bool
    assert batch.keep == 3  # two columns with labels, and the one before that predicts the first


def test_collate_of_prompts_alone_keeps_one_column() -> None:
    batch = collate([example([5, 6], []), example([7], [])], pad=PAD)
    assert batch.keep == 1
    assert batch.input_ids.tolist() == [[5, 6], [PAD, 7]]


# -- length ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "cut", "kept"),
    [
        (9, "middle", [1, 2, 3, 4, 5, 6, 7]),
        (7, "start", [1, 2, 3, 4, 5, 6, 7]),
        (4, "start", [4, 5, 6, 7]),
        (4, "end", [1, 2, 3, 4]),
        (4, "middle", [1, 2, 6, 7]),
        (5, "middle", [1, 2, 3, 6, 7]),
        (1, "start", [7]),
        (1, "end", [1]),
        (1, "middle", [1]),
    ],
)
def test_cut_prompt_by_hand(room: int, cut: str, kept: list[int]) -> None:
    assert cut_prompt([1, 2, 3, 4, 5, 6, 7], room, cut) == kept


@pytest.mark.parametrize(("cut", "kept"), [("start", "f g h"), ("end", "a b c"), ("middle", "a b h")])
def test_the_prompt_is_cut_and_never_the_answer(cut: str, kept: str) -> None:
    answer = " ".join(["yes"] * 12)
    made = encode(Row("a b c d e f g h", answer), cut=cut)
    assert made.prompt == ids(kept)
    assert made.answer == [*ids(answer), EOS]
    assert made.cut
    assert len(made) == 16


@pytest.mark.parametrize(
    ("room", "cut", "kept"),
    [(3, "start", [0, 8, 9]), (3, "end", [0, 6, 7]), (4, "middle", [0, 6, 7, 9]), (1, "start", [9])],
)
def test_a_begin_of_text_token_is_not_cut(room: int, cut: str, kept: list[int]) -> None:
    made = encoder(cut=cut)
    made.start = 0
    assert made.cut([0, 6, 7, 8, 9], room) == kept
    assert made.cut([6, 7, 8, 9], 4) == [6, 7, 8, 9]


def test_a_row_that_just_fits_is_not_cut() -> None:
    made = encode(Row("a b c", " ".join(["yes"] * 12)))
    assert (made.prompt, made.cut) == (ids("a b c"), False)


def test_an_answer_that_does_not_fit_names_its_row() -> None:
    assert encode(Row("a", " ".join(["yes"] * 14))).cut is False
    rows = task(Row("a", "yes"), Row("a", " ".join(["yes"] * 15)))
    with pytest.raises(
        InputError, match=r"'Some Task', row some-task/train/1: the answer has 16 tokens .*data\.max_length \(16\)"
    ):
        encoder().encode(rows, "train")


# -- templates and separators ------------------------------------------------------------------------------------------


@pytest.fixture
def bytewise(tiny_model: Path) -> Any:
    """A tokenizer from which the exact text can be read back."""
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize(
    ("prompt", "settings", "head", "tail"),
    [
        ("Why?", {}, "Why?", " red"),
        ("Why?\n", {}, "Why?\n", "red"),
        ("Why?", {"separator": "\n"}, "Why?", "\nred"),
        ("Why?", {"separator": ""}, "Why?", "red"),
        (
            "Why?",
            {"template": "alpaca"},
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nWhy?\n\n### Response:\n",
            "red",
        ),
        ("{x} {}", {"template": "alpaca"}, None, "red"),
        ("Why?", {"template": "chat"}, "[user] Why?\n[assistant] ", "red"),
    ],
)
def test_templates(bytewise: Any, prompt: str, settings: dict[str, Any], head: str | None, tail: str) -> None:
    made = encode(Row(prompt, "red"), bytewise, max_length=400, **settings)
    if head is None:
        assert f"### Instruction:\n{prompt}\n" in bytewise.decode(made.prompt)
    else:
        assert bytewise.decode(made.prompt) == head
    assert bytewise.decode(made.answer) == f"{tail}</s>"


def test_chat_rows_keep_their_turns_only_in_the_chat_template(bytewise: Any) -> None:
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    row = Row("Be brief.\n\nHi", "Hello", turns)
    made = encode(row, bytewise, template="chat", max_length=200)
    assert bytewise.decode(made.prompt) == "[system] Be brief.\n[user] Hi\n[assistant] "
    assert bytewise.decode(encode(row, bytewise, max_length=200).prompt) == "Be brief.\n\nHi"


def test_the_chat_template_writes_its_special_tokens_itself() -> None:
    tokens = tokenizer(post="<s> $A")
    tokens.chat_template = "<s> {% for m in messages %}user : {{ m.content }} </s> {% endfor %}"
    made = encode(Row("a b", "yes"), tokens, template="chat")
    assert made.prompt == [BOS, *ids("user : a b"), EOS]  # one <s>, and the template's own </s> stays
    assert made.answer == [*ids("yes"), EOS]


def test_chat_needs_a_chat_template() -> None:
    with pytest.raises(InputError, match=r"data\.template: chat, .*use none or alpaca"):
        encoder(template="chat")


# -- special tokens and the border -------------------------------------------------------------------------------------


@pytest.mark.parametrize("post", ["<s> $A", "<s> $A </s>", "$A </s>"])
def test_a_tokenizer_that_adds_special_tokens(post: str) -> None:
    made = encode(Row("a b", "yes"), tokenizer(post=post))
    assert made.prompt == [BOS] * post.startswith("<s>") + ids("a b")
    assert made.answer == [*ids("yes"), EOS]  # one end, whether or not the tokenizer adds its own


def letters(*merges: tuple[str, str]) -> Any:
    """Letters as tokens, and the given merges."""
    vocabulary = ["</s>", "x", "y", "z", "=", "Ġ", *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE({token: number for number, token in enumerate(vocabulary)}, list(merges)))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")


def words(tokens: Any, numbers: list[int]) -> list[str]:
    return list(tokens.convert_ids_to_tokens(numbers))


def test_the_border_is_tokenized_as_the_joined_text() -> None:
    tokens = letters(("Ġ", "x"), ("Ġ", "y"))
    tokens.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert words(tokens, tokens("yz").input_ids) == ["Ġy", "z"]  # a text alone begins like a new word
    made = encode(Row("xx=", "yz"), tokens, separator="")
    assert words(tokens, made.prompt) == ["Ġx", "x", "="]
    assert words(tokens, made.answer) == ["y", "z", "</s>"]
    spaced = encode(Row("xx=", "yz"), tokens)
    assert words(tokens, spaced.answer) == ["Ġy", "z", "</s>"]


def test_a_token_across_the_border_leaves_both_sides_as_they_are_alone() -> None:
    tokens = letters(("x", "y"), ("y", "z"))
    assert words(tokens, tokens("xxyz").input_ids) == ["x", "xy", "z"]  # the joined text has a token across
    made = encode(Row("xx", "yz"), tokens, separator="")
    assert words(tokens, made.prompt) == ["x", "x"]
    assert words(tokens, made.answer) == ["yz", "</s>"]


def test_the_fallback_adds_no_second_start_of_text() -> None:
    tokens = letters(("x", "y"))
    tokens.add_special_tokens({"bos_token": "<s>"})
    start = tokens.convert_tokens_to_ids("<s>")
    tokens.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    made = encode(Row("x", "yz"), tokens, separator="")
    assert words(tokens, made.prompt) == ["<s>", "x"]
    assert words(tokens, made.answer) == ["y", "z", "</s>"]


# -- choices and sizes -------------------------------------------------------------------------------------------------


def test_choices_are_grouped_by_row() -> None:
    made = encoder().choices(task(Row("a b", "yes"), Row("c", "no ."), choices=("yes", "no .", "h")), "train")
    answers = [[*ids(choice), EOS] for choice in ("yes", "no .", "h")]
    assert [[row.answer for row in group] for group in made] == [answers, answers]
    assert [[row.prompt for row in group] for group in made] == [[ids("a b")] * 3, [ids("c")] * 3]
    assert [group[0].id for group in made] == ["some-task/train/0", "some-task/train/1"]


def test_the_right_choice_is_encoded_as_in_training(bytewise: Any) -> None:
    rows = task(Row("Is it red ?", "red"), Row("Is it blue ?\n", "blue"), choices=("red", "blue"))
    made = encoder(bytewise, max_length=64)
    trained, choices = made.encode(rows, "train"), made.choices(rows, "train")
    for row, group, number in zip(trained, choices, (0, 1), strict=True):
        assert (group[number].prompt, group[number].answer) == (row.prompt, row.answer)


def test_no_rows_give_no_examples() -> None:
    assert encoder().encode(task(), "train") == []
    assert encoder().choices(task(choices=("yes",)), "train") == []


def test_totals_by_hand() -> None:
    rows = [
        example([5, 6, 7], [8, EOS]),
        example([5], [EOS]),
        example([5, 6], [7, 8, EOS], replayed=True),
    ]
    assert Totals.of(rows) == Totals(
        current=Count(rows=2, tokens=7, labels=3), replayed=Count(rows=1, tokens=5, labels=3)
    )
    assert Totals.of(rows[:1]).replayed == Count(rows=0, tokens=0, labels=0)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokens = tokenizer()
    tokens.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        encoder(tokens)
