"""The configuration: every problem in one message, overrides, and what a method's own section takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from ilora.config import Config, load_config, read_yaml
from ilora.errors import InputError
from ilora.methods import METHODS, Method
from ilora.settings import MethodConfig
from ilora.words import INSTEAD

ROOT = Path(__file__).parents[1]
DATA = {"benchmark": "mini8"}


class Outside(Method):
    """A method that is not registered, with a setting that has no default."""

    class Config(MethodConfig):
        strength: float = Field(ge=0)
        mode: str = "plain"


OUTSIDE = f"{__name__}:Outside"


def load(*overrides: str, **sections: Any) -> Config:
    return load_config({"data": DATA} | sections, overrides)


def refusal(*overrides: str, **sections: Any) -> list[str]:
    """The lines of the error message."""
    with pytest.raises(InputError) as caught:
        load(*overrides, **sections)
    return str(caught.value).splitlines()


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "key", "near"),
    [
        ({"trainig": {}}, "trainig", "training"),
        ({"training": {"epoch": 1}}, "training.epoch", "epochs"),
        ({"data": DATA | {"limit": {"trian": 1}}}, "data.limit.trian", "train"),
        ({"data": {"tasks": ["a", {"name": "b", "colums": {}}]}}, "data.tasks.1.colums", "columns"),
        ({"method": {"name": "er", "memory": 1}}, "method.memory", "memory_size"),
        ({"method": {"name": "ilora", "ema_dcay": 0.5}}, "method.ema_dcay", "ema_decay"),
        ({"contrast": ["er", {"name": "ilora", "strenth": 1}]}, "contrast.1.strenth", "strength"),
        ({"method": {"name": OUTSIDE, "strength": 1, "stength": 1}}, "method.stength", "strength"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(sections: dict[str, Any], key: str, near: str) -> None:
    assert refusal(**sections)[1:] == [f"  {key}: unknown key (did you mean '{near}'?)"]


def test_keys_of_another_method_are_unknown() -> None:
    assert refusal(method={"name": "sequential", "memory_size": 5})[1:] == ["  method.memory_size: unknown key"]


def test_all_problems_are_in_one_message() -> None:
    lines = refusal(
        sead=1,
        name="../up",
        model={"dtype": "int8"},
        data=DATA | {"max_length": 3},
        method={"name": "erx"},
        contrast=[{"name": "er", "memory_size": -1}],
        training={"epochs": "many", "learning_rate": 0, "warmup_ratio": float("nan")},
    )
    assert lines[0] == "configuration: 9 problem(s)"
    keys = [line.strip().partition(":")[0] for line in lines[1:]]
    assert sorted(keys) == [
        "contrast.0.memory_size",
        "data.max_length",
        "method",
        "model.dtype",
        "name",
        "sead",
        "training.epochs",
        "training.learning_rate",
        "training.warmup_ratio",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=many", r"training\.epochs: .*integer.*\(got 'many'\)"),
        ("training.epochs=0", r"training\.epochs: .*greater than or equal to 1 \(got 0\)"),
        ("training.epochs=1.5", r"training\.epochs: .*integer"),
        ("adapter.dropout=1", r"adapter\.dropout: .*less than 1 \(got 1\)"),
        ("training.learning_rate=.inf", r"training\.learning_rate: .*finite"),
        ("training.schedule=cosin", r"training\.schedule: .*'constant', 'linear' or 'cosine' \(got 'cosin'\)"),
        ("model=3", r"model: .*mapping.* found 3"),
        ("method={name: ilora, ema_decay: 2}", r"method\.ema_decay: .*less than or equal to 1 \(got 2\)"),
        ("method=5", r"method: give a method's name, or a mapping"),
        ("contrast=[er, er]", r"contrast: a method stands twice"),
        ("data.benchmark=null", r"data: no data: give"),
        ("data.tasks=[]", r"data\.tasks: .*at least 1"),
        ("data.tasks=[{name: a, path: x, dataset: y}]", r"data\.tasks\.0: give one source"),
        ("data.tasks=[{name: a, test: x}]", r"data\.tasks\.0: .*at least `train`"),
        ("data.tasks=[{name: a, dataset: x, splits: {test: test}}]", r"data\.tasks\.0: `splits` needs at least"),
        ("trackers=[wandbb]", r"trackers\.0: .*'wandb'"),
        ("name=a/b", r"name: .*pattern"),
    ],
)
def test_wrong_types_and_ranges(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(override)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ilra", r"method: unknown method 'ilra' \(did you mean 'ilora'\?\); known: agem, derpp, er, .*, zero_shot"),
        ("no_such_module:Own", "method: method 'no_such_module:Own': ModuleNotFoundError: No module named"),
        ("json:Own", "method: method 'json:Own': AttributeError: module 'json' has no attribute 'Own'"),
        ("json:JSONDecoder", "method: method 'json:JSONDecoder': not a subclass of ilora.methods.Method"),
        ({"memory_size": 3}, "method: give a method's name"),
        ({"name": "er", 1: 2}, r"method\.1: Keys should be strings"),
        ({"name": OUTSIDE}, r"method\.strength: Field required"),
    ],
)
def test_methods_that_cannot_be_used(method: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(method=method)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"", "expected a mapping"),
        (b"1: 2\n", "expected a mapping"),
        (b"name: \xff\n", r"not UTF-8 \(byte 6\)"),
        (b"data: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (b"data: {benchmark: mini8}\nsead: 1\n", r"1 problem\(s\)\n  sead: unknown key"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"c\.yaml: {message}"):
        load_config(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such configuration file"):
        load_config(tmp_path / "none.yaml")


# -- overrides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.learning_rate=1e-4", lambda c: c.training.learning_rate == 1e-4),
        ("training.learning_rate=.5", lambda c: c.training.learning_rate == 0.5),
        ("training.max_grad_norm=null", lambda c: c.training.max_grad_norm is None),
        ("training.reset_optimizer=false", lambda c: c.training.reset_optimizer is False),
        ("adapter.target_modules=[q_proj, o_proj]", lambda c: c.adapter.target_modules == ["q_proj", "o_proj"]),
        ("adapter.target_modules=all-linear", lambda c: c.adapter.target_modules == "all-linear"),
        ("data.tasks=[a, {name: b, path: c}]", lambda c: [task.name for task in c.data.tasks] == ["a", "b"]),
        ("data.limit.train=7", lambda c: c.data.limit.train == 7),
        ("data.separator=' = '", lambda c: c.data.separator == " = "),
        ("evaluation.max_new_tokens=auto", lambda c: c.evaluation.max_new_tokens == "auto"),
        ("method={name: ilora, ema_half_life_share: 1e-1}", lambda c: c.method.ema_half_life_share == 0.1),
        ("model.revision=12345e6", lambda c: c.model.revision == "12345e6"),  # a commit, not a number
        ("model.name=a=b", lambda c: c.model.name == "a=b"),
        ("method=er", lambda c: type(c.method) is METHODS["er"].Config),
        ("method.memory_size=10", lambda c: c.method.memory_size == 10 and c.method.name == "ilora"),
        ("contrast=[er, {name: ilora, strength: 0}]", lambda c: c.contrast[1].strength == 0),
    ],
)
def test_overrides(override: str, read: Any) -> None:
    assert read(load(override, method="ilora"))


def test_later_overrides_win_and_the_given_mapping_stays() -> None:
    given = {"data": DATA, "training": {"epochs": 5}, "method": {"name": "ilora"}}
    before = json.dumps(given)
    config = load_config(given, ["training.epochs=6", "training.epochs=7", "method=er", "method.memory_size=3"])
    assert config.training.epochs == 7
    assert config.method == METHODS["er"].Config(name="er", memory_size=3)
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "expected key=value"),
        ("=1", "expected key=value"),
        ("data.tasks=[1", "is not a YAML value"),
        ("seed.x=1", "'seed' is 3, not a section"),
        ("data.tasks.1.name=x", "'1' is not a section of the list"),
        ("data.tasks.0=x", "'0' is not a section of the list"),
    ],
)
def test_overrides_that_cannot_be_used(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(override, seed=3, data=DATA | {"tasks": ["a"]})


# -- methods -----------------------------------------------------------------------------------------------------------


def test_a_method_from_outside() -> None:
    config = load(method={"name": OUTSIDE, "strength": 2}, contrast=[{"name": OUTSIDE, "strength": 0}])
    assert type(config.method) is Outside.Config
    assert config.method.strength == 2.0
    assert config.contrast[0].mode == "plain"
    assert load_config(config.dump()) == config


@pytest.mark.parametrize(
    ("given", "decay"),
    [
        ({}, (None, None, 0.25)),
        ({"ema_decay": 0.0}, (0.0, None, None)),
        ({"ema_half_life_steps": 10}, (None, 10.0, None)),
        ({"ema_half_life_share": 0.5, "ema_decay": None}, (None, None, 0.5)),
    ],
)
def test_ilora_takes_one_of_three_decays(given: dict[str, Any], decay: tuple[float | None, ...]) -> None:
    config = load(method={"name": "ilora"} | given)
    method: Any = config.method
    assert (method.ema_decay, method.ema_half_life_steps, method.ema_half_life_share) == decay
    assert load_config(config.dump()) == config


def test_ilora_refuses_two_decays() -> None:
    (line,) = refusal(method={"name": "ilora", "ema_decay": 0.0, "ema_half_life_steps": 3})[1:]
    assert line.startswith("  method: give one of ema_decay,")
    assert "not ema_decay and ema_half_life_steps" in line


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_dump_and_load_are_inverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(
        "training.learning_rate=1e-4",
        "evaluation.max_new_tokens=12",
        data={"tasks": ["plain", {"name": "x", "train": "a.json", "test": "b.json", "columns": {"answer": "label"}}]},
        method={"name": "ilora", "ema_half_life_share": 0.25},
        contrast=["sequential", {"name": "er", "memory_policy": "reservoir", "replay_from": "whole_memory"}],
        trackers=["wandb"],
    )
    monkeypatch.chdir(tmp_path)
    path = Path("config.yaml")
    path.write_text(yaml.safe_dump(config.dump(), sort_keys=False), encoding="utf-8")
    again = load_config(path)
    assert again == config
    assert again.dump() == config.dump() == json.loads(json.dumps(config.dump()))
    assert config.dump()["contrast"][1] == {
        "name": "er",
        "learning_rate": None,
        "memory_size": 500,
        "memory_policy": "reservoir",
        "replay_from": "whole_memory",
    }


@pytest.mark.parametrize(
    "override",
    ["training.epochs=true", "adapter.dropout=false", "method.memory_size=yes", "seed=on", "data.limit.train=true"],
)
def test_true_is_no_number(override: str) -> None:
    assert refusal(override)[1].startswith(f"  {override.partition('=')[0]}: ")


def test_true_is_true() -> None:
    assert load("data.deduplicate=true").data.deduplicate
    assert not load("training.reset_optimizer=false").training.reset_optimizer


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_load(path: Path) -> None:
    config = load_config(path)
    assert load_config(config.dump()) == config


def test_the_json_schema_describes_every_key() -> None:
    schema = json.loads(json.dumps(Config.model_json_schema()))
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["required"] == ["data"]
    assert "memory_size" not in schema["properties"]["method"]


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\ndata: {benchmark: mini8}\nseed: 2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"twice\.yaml.*'seed' stands twice(.|\n)*line 3"):
        load_config(path)


def test_each_reading_of_a_file_is_its_own_and_of_what_it_says_now(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: {tasks: [one]}", encoding="utf-8")
    first = read_yaml(path)
    first["data"]["tasks"].append("two")
    assert read_yaml(path) == {"data": {"tasks": ["one"]}}
    path.write_text("data: {tasks: [six]}", encoding="utf-8")  # of the same size
    assert read_yaml(path) == {"data": {"tasks": ["six"]}}


def test_a_method_setting_alone_is_the_default_methods() -> None:
    config = load_config({"data": {"benchmark": "mini8"}}, ["method.memory_size=7"])
    assert config.method.name == "ilora"
    assert config.method.memory_size == 7  # type: ignore[attr-defined]


def test_home_and_variables_are_written_out_in_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("ROWS", "/rows")
    task = {"name": "a", "train": "~/a.json", "eval": "$ROWS/b.json", "test": "${ROWS}/c.json"}
    data = {"path": "$HOME/d", "tasks": [task, {"name": "b", "path": "~/e"}, {"name": "c", "dataset": "~/f"}]}
    found = load(model={"name": "$ROWS/m"}, data=data, evaluation={"perplexity_file": "~/text"})
    assert found.model.name == "/rows/m"
    assert found.evaluation.perplexity_file == Path("/h/text")
    assert found.data.path == Path("/h/d")
    first, second, third = found.data.tasks or []
    assert [str(place) for place in (first.train, first.eval, first.test)] == [
        "/h/a.json",
        "/rows/b.json",
        "/rows/c.json",
    ]
    assert (second.path, third.dataset) == (Path("/h/e"), "/h/f")
    monkeypatch.delenv("ROWS")
    assert refusal(data={"path": "$ROWS/x"})[1].startswith("  data.path: the variable $ROWS")


@pytest.mark.parametrize("override", ["adapter.rank_pattern={q_proj: true}", "adapter.layers_to_transform=[true]"])
def test_true_is_no_number_within_a_list_or_a_mapping_either(override: str) -> None:
    with pytest.raises(InputError, match="true is neither a number nor a text"):
        load_config({"data": {"path": "data"}}, [override])


# -- words that people type --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ({"lr": 1e-3}, "training.learning_rate", 1e-3),
        ({"learning_rate": 1e-3}, "training.learning_rate", 1e-3),
        ({"training": {"lr": 1e-3, "epochs": 2}}, "training.learning_rate", 1e-3),
        ({"num_train_epochs": 2}, "training.epochs", 2),
        ({"num_epochs": 2}, "training.epochs", 2),
        ({"max_steps": 9}, "training.max_steps", 9),
        ({"training": {"save_steps": 9}}, "training.checkpoint_every", 9),
        ({"logging_steps": 9}, "training.log_every", 9),
        ({"lora_rank": 4}, "adapter.r", 4),
        ({"adapter": {"rank": 4}}, "adapter.r", 4),
        ({"adapter": {"lora_r": 4}, "lora_alpha": 8}, "adapter.alpha", 8),
        ({"max_seq_length": 64}, "data.max_length", 64),
        ({"model": "smollm2-135m"}, "model.name", "smollm2-135m"),
        ({"adapter": {"target_modules": "q_proj"}}, "adapter.target_modules", ["q_proj"]),
    ],
)
def test_a_word_with_one_meaning_is_taken(typed: dict[str, Any], key: str, value: object) -> None:
    section, name = key.split(".")
    assert load_config({"data": {"path": "data"}} | typed).dump()[section][name] == value


def test_a_setting_under_two_words_is_refused() -> None:
    with pytest.raises(InputError, match=r"lr and training\.learning_rate are the same setting"):
        load_config({"data": {"path": "data"}, "lr": 1e-3, "training": {"learning_rate": 1e-4}})


@pytest.mark.parametrize("word", sorted(INSTEAD))
@pytest.mark.parametrize("section", [None, "training"])
def test_a_word_without_a_counterpart_is_named_with_what_to_use(word: str, section: str | None) -> None:
    given = {section: {word: 1}} if section else {word: 1}
    with pytest.raises(InputError, match="1 problem") as caught:
        load_config({"data": {"path": "data"}} | given)
    assert INSTEAD[word] in str(caught.value)


def test_early_stopping_by_overrides() -> None:
    base = {"data": {"path": "data"}}
    assert load_config(base).training.stop_when is None
    rule = load_config(base, ["training.stop_when.patience=5"]).training.stop_when
    assert rule is not None
    assert (rule.patience, rule.every, rule.min_delta) == (5, 20, 0.0)
    with pytest.raises(InputError, match=r"training\.stop_when\.patince: .*did you mean 'patience'"):
        load_config(base, ["training.stop_when.patince=5"])


def test_yes_without_quotes_is_named() -> None:
    with pytest.raises(InputError, match="quote a word that YAML takes for it") as caught:
        load_config({"data": {"tasks": [{"name": "a", "path": "a", "choices": [True, False]}]}})
    assert "1 problem" in str(caught.value)


def test_an_override_replaces_a_setting_under_either_word() -> None:
    base = {"data": {"path": "data"}}
    assert load_config(base | {"training": {"learning_rate": 1e-4}}, ["lr=2e-4"]).training.learning_rate == 2e-4
    assert load_config(base | {"lr": 1e-4}, ["training.learning_rate=2e-4"]).training.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["lr=1", "training.learning_rate=2"], ("lr=1", "training.learning_rate=2", "training.learning_rate")),
        (["lr=1", "learning_rate=2"], ("lr=1", "learning_rate=2")),
        (["epochs=1", "num_train_epochs=2"], ("epochs=1", "num_train_epochs=2", "training.epochs")),
        (["columns.prompt=a", "data.columns.prompt=b"], ("columns.prompt=a", "data.columns.prompt=b")),
    ],
)
def test_two_words_for_a_setting_with_two_values_are_refused(overrides: list[str], named: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        load_config({"data": {"path": "x"}}, overrides)
    assert all(part in str(caught.value) for part in named)


def test_the_same_value_twice_and_the_later_of_two_are_taken() -> None:
    config = load_config({"data": {"path": "x"}}, ["lr=0.5", "training.learning_rate=0.5", "epochs=1", "epochs=3"])
    assert (config.training.learning_rate, config.training.epochs) == (0.5, 3)


def test_a_tasks_own_keys_are_no_short_words() -> None:
    config = load_config(
        {"data": {"tasks": ["one"]}}, ["data.tasks.0.template=chat", "data.tasks.0.marker=A:", "marker=## Answer:"]
    )
    assert config.data.tasks is not None
    assert (config.data.tasks[0].template, config.data.tasks[0].marker, config.data.marker) == (
        "chat",
        "A:",
        "## Answer:",
    )
