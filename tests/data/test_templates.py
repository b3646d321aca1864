"""A model's chat template: taken by itself, its end of a turn learnt, its frame kept when a prompt is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ilora import InputError, run
from ilora.config import load_config
from ilora.data.encoding import Encoder, control_tokens, with_template
from ilora.data.examples import Example
from ilora.data.task import Row, Task
from ilora.data.template import end_of_turn, in_template
from ilora.evaluation.scoring import answer_text
from ilora.settings import DataConfig
from tests.helpers import FEW_SCORES, MakeConfig, write_task

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["w" + str(number) for number in range(40)]


@pytest.fixture
def tokens() -> Any:
    """A word-level tokenizer whose end of text is not the end of its turns."""
    known = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system", "question", "answer", *WORDS]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    wrapped.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    wrapped.chat_template = CHATML
    return wrapped


def encoder(tokens: Any, **settings: Any) -> Encoder:
    return Encoder(tokens, DataConfig(path="data", **{"max_length": 100} | settings))


def encoded(made: Encoder, row: Row) -> Example:
    (example,) = made.encode(Task("one", {"train": [row]}), "train")
    return example


def words(tokens: Any, ids: list[int]) -> str:
    return str(tokens.decode(ids))


def test_auto_is_the_chat_template_where_there_is_one_and_no_benchmark(tokens: Any) -> None:
    assert encoder(tokens).config.template == "chat"
    assert with_template(DataConfig(benchmark="mini8"), tokens).template == "none"
    assert with_template(DataConfig(path="data", template="none"), tokens).template == "none"
    tokens.chat_template = None
    assert encoder(tokens).config.template == "none"


def test_an_answer_ends_with_the_templates_end_of_a_turn(tokens: Any) -> None:
    made = encoder(tokens, max_length=30)
    example = encoded(made, Row("w1 w2", "w3"))
    assert words(tokens, example.prompt).split() == "<|im_start|> user w1 w2 <|im_end|> <|im_start|> assistant".split()
    assert words(tokens, example.answer).split() == ["w3", "<|im_end|>"]
    assert encoded(encoder(tokens, template="none"), Row("w1", "w3")).answer[-1] == tokens.eos_token_id


def test_a_template_without_an_end_of_its_own_ends_with_the_text(tokens: Any) -> None:
    tokens.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    assert end_of_turn(tokens) == tokens.eos_token_id


def test_a_generated_answer_ends_at_any_end(tokens: Any) -> None:
    extra = tokens.convert_tokens_to_ids("w9")
    made = Encoder(tokens, DataConfig(path="data", max_length=30), ends=[extra])
    turn, text = tokens.convert_tokens_to_ids("<|im_end|>"), tokens.eos_token_id
    assert made.ends == (turn, text, extra)
    for end in made.ends:
        assert answer_text([*tokens.convert_tokens_to_ids(["w3", "w4"]), end, 20, 21], made).split() == ["w3", "w4"]


def test_an_end_in_a_prompt_stays_there_and_never_begins_the_answer(tokens: Any) -> None:
    example = encoded(encoder(tokens, template="none"), Row("w1 w2 <|endoftext|>", "w3"))
    assert words(tokens, example.prompt).split() == ["w1", "w2", "<|endoftext|>"]
    assert words(tokens, example.answer).split() == ["w3", "<|endoftext|>"]


def test_control_tokens_in_peoples_text_are_counted(tokens: Any) -> None:
    rows = [Row("w1 <|im_end|>", "w2"), Row("w1", "w2<|im_end|>"), Row("w1", "w2")]
    assert control_tokens(tokens, rows) == {"<|im_end|>": 2}


@pytest.mark.parametrize("cut", ["start", "middle", "end"])
def test_a_cut_takes_from_the_longest_message_alone(tokens: Any, cut: str) -> None:
    turns = ({"role": "system", "content": "w1 w2"}, {"role": "user", "content": " ".join(WORDS[3:30])})
    row = Row("as text", "w2", messages=turns)
    made = encoder(tokens, max_length=20, cut=cut)
    example = encoded(made, row)
    said = words(tokens, example.prompt).split()
    assert len(example) == 20
    assert example.cut
    assert said[:6] == "<|im_start|> system w1 w2 <|im_end|> <|im_start|>".split()
    assert said[6] == "user"
    assert said[-3:] == "<|im_end|> <|im_start|> assistant".split()
    kept = said[7:-3]
    whole = WORDS[3:30]
    expected = {"start": whole[-len(kept) :], "end": whole[: len(kept)]}
    assert kept == expected.get(cut, kept)
    assert kept[0] == "w3" or cut == "start"
    # Asked with still less room, what is left of the message is cut again, and the frame stays.
    shorter = words(tokens, made.cut(example.prompt, len(example.prompt) - 3, example.body)).split()
    assert shorter[:7] == said[:7]
    assert shorter[-3:] == said[-3:]
    assert len(shorter) == len(said) - 3


def test_the_alpaca_frame_stays(tokens: Any) -> None:
    row = Row(" ".join(WORDS[1:30]), "w2")
    long = encoded(encoder(tokens, template="alpaca"), row)
    short = encoded(encoder(tokens, template="alpaca", max_length=len(long) - 10), row)
    ((start, stop),), ((begin, end),) = short.body, long.body
    assert short.prompt[:start] == long.prompt[:begin]
    assert short.prompt[stop:] == long.prompt[end:]


@pytest.mark.parametrize("cut", ["start", "middle", "end"])
def test_of_several_long_messages_each_keeps_its_frame(tokens: Any, cut: str) -> None:
    roles = ["user", "assistant", "user", "assistant", "user"]
    turns = tuple({"role": role, "content": " ".join(WORDS[5 * n : 5 * n + 9 + n])} for n, role in enumerate(roles))
    example = encoded(encoder(tokens, max_length=42, cut=cut), Row("as text", "w2", messages=turns))
    said = words(tokens, example.prompt).split()
    assert len(example) == 42
    assert said.count("<|im_end|>") == 5
    assert [said[n + 1] for n, word in enumerate(said) if word == "<|im_start|>"] == [*roles, "assistant"]
    sizes = [stop - start for start, stop in example.body]
    assert max(sizes) - min(sizes) <= 1  # the longest gave most


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML.replace("{{ m.content | trim }}", "<think>\n\n</think>\n\n{{ m.content }}"), "<|im_end|>"),
        ("{% for m in messages %}[INST] {{ m.content | upper }} [/INST] <|im_end|> {% endfor %}", "<|im_end|>"),
    ],
)
def test_the_end_of_a_turn_is_found_in_other_templates(tokens: Any, template: str, end: str) -> None:
    tokens.chat_template = template
    assert end_of_turn(tokens) == tokens.convert_tokens_to_ids(end)


def test_a_template_that_writes_the_date_gives_the_same_rows_every_day(tokens: Any) -> None:
    tokens.chat_template = "Today {{ strftime_now('%d %b %Y %S %f') }} " + CHATML
    made = encoder(tokens)
    assert encoded(made, Row("w1", "w2")) == encoded(made, Row("w1", "w2"))
    assert "26 Jul 2024" in in_template(tokens, [{"role": "user", "content": "w1"}])


def test_a_template_that_shows_no_text_is_refused(tokens: Any) -> None:
    tokens.chat_template = "{% for m in messages %}{% for p in m.content %}{{ p['text'] }}{% endfor %}{% endfor %}"
    with pytest.raises(InputError, match="leaves out the text of a message"):
        encoder(tokens)


def test_a_template_that_fails_is_named_with_the_row(tokens: Any) -> None:
    tokens.chat_template = "{% for m in messages %}{{ m.content + m.get('x') }}{% endfor %}"
    with pytest.raises(InputError, match="chat: the model's template: TypeError"):
        encoded(encoder(tokens), Row("w1", "w2"))


# -- in a run ----------------------------------------------------------------------------------------------------------


def test_what_was_chosen_is_said_and_kept(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], report: None
) -> None:
    config = make_config("data.template=auto", "data.tasks=[one]", "training.epochs=1", *FEW_SCORES)
    result = run(config, tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "prompts stand in the model's own chat template" in said
    assert result.results["template"] == "chat"
    assert load_config(tmp_path / "run" / "config.yaml").data.template == "chat"
    assert "apply_chat_template" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_warnings_before_training(make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_task(tmp_path, "four")
    rows = json.loads((folder / "train.json").read_text())
    rows[0]["prompt"] += "</s>"
    for row in rows:
        row["prompt"] = 3 * row["prompt"]
    (folder / "train.json").write_text(json.dumps(rows))
    data = {"tasks": [{"name": "four", "path": str(folder)}], "max_length": 16, "template": "none"}
    run(make_config("training.epochs=1", *FEW_SCORES, data=data), tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "the control token </s> stands in the text of 1 training rows" in said
    assert "of 24 training prompts are cut to data.max_length (16)" in said


@pytest.mark.parametrize("method", ["sequential", "progressive_prompts", "l2p"])
def test_a_model_with_few_positions_answers_within_them(
    method: str, make_config: MakeConfig, tiny_model: Path, tmp_path: Path
) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    for file in tiny_model.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    rows = [{"prompt": f"{number} red " * 12, "answer": "small old new big " * 5} for number in range(8)]
    for split in ("train", "eval", "test"):
        (tmp_path / "long").mkdir(exist_ok=True)
        (tmp_path / "long" / f"{split}.json").write_text(json.dumps(rows))
    data = {"tasks": [{"name": "long", "path": str(tmp_path / "long")}], "max_length": 64, "template": "none"}
    settings = {"name": method} | ({"prompt_length": 4} if method != "sequential" else {})
    sections = {"data": data, "method": settings, "evaluation": {"max_new_tokens": "auto", "zero_shot": False}}
    config = make_config(f"model.name={folder}", "training.epochs=1", **sections)
    assert run(config, tmp_path / "run", quiet=True).results["complete"]
    too_long = make_config(f"model.name={folder}", **sections | {"evaluation": {"max_new_tokens": 64}})
    with pytest.raises(InputError, match="max_new_tokens is 64, but the model reads at most"):
        run(too_long, tmp_path / "other", quiet=True)
