"""From a sweep file to its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ilora.errors import InputError
from ilora.sweeps.plan import Job, expand, read_sweep
from tests.helpers import MakeConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(make_config: MakeConfig, tmp_path: Path) -> Any:
    """A sweep file with the tiny configuration as its base."""

    def make(**content: Any) -> Path:
        base = make_config().dump() | {"contrast": ["er"]}
        del base["training"]["trajectory"]
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
        file = tmp_path / "many.yaml"
        file.write_text(yaml.safe_dump({"base": "base.yaml"} | content, sort_keys=False), encoding="utf-8")
        return file

    return make


def jobs_of(file: Path, *overrides: str) -> list[Job]:
    return expand(read_sweep(file, overrides), file)


def test_every_combination_once_and_the_first_seed_and_order_first(write: Any) -> None:
    orders = [["one", "two", "three"], ["three", "one", "two"]]
    jobs = jobs_of(write(methods=["er", "sequential"], orders=orders, seeds=[3, 5]))
    assert [(job.label, job.seed, job.order) for job in jobs] == [
        (label, seed, order) for seed in (3, 5) for order in (1, 2) for label in ("er", "sequential")
    ]
    for job in jobs:
        assert [task.name for task in job.config.data.tasks or ()] == orders[job.order - 1]
        assert (job.config.seed, job.config.method.name, job.config.contrast) == (job.seed, job.label, [])
        assert job.config.training.trajectory == 0
    assert {str(job.folder) for job in jobs} == {f"runs/{job.label}/{job.order}-{job.seed}" for job in jobs}


def test_labels_settings_and_joint_training(write: Any) -> None:
    methods = {
        "plain": "sequential",
        "joint": {"method": "sequential", "stream": "joint"},
        "ilora+": {"name": "ilora", "ema_decay": 0.5},
        "ilora": None,
    }
    grid = {"method.ema_decay": [0.9, 0.99], "training.epochs": [1]}
    jobs = jobs_of(write(methods=methods, settings=grid))
    assert [(job.label, job.config.stream, job.config.method.name) for job in jobs] == [
        ("plain", "sequential", "sequential"),
        ("joint", "joint", "sequential"),
        *[("ilora+", "sequential", "ilora")] * 2,
        *[("ilora", "sequential", "ilora")] * 2,
    ]
    assert [getattr(job.config.method, "ema_decay", None) for job in jobs] == [None, None, 0.9, 0.99, 0.9, 0.99]
    assert [str(job.folder) for job in jobs[:3]] == [
        "runs/plain/1-0-epochs=1",
        "runs/joint/1-0-epochs=1",
        "runs/ilora+/1-0-ema_decay=0.9-epochs=1",
    ]


def test_orders_by_number_are_the_given_one_and_others_always_the_same(write: Any) -> None:
    file = write(methods=["er"], orders=6, seeds=2)
    orders = [tuple(task.name for task in job.config.data.tasks or ()) for job in jobs_of(file)]
    assert orders[0] == ("one", "two", "three")
    assert len(set(orders[:6])) == 6
    assert orders == orders[:6] * 2 == [tuple(t.name for t in j.config.data.tasks or ()) for j in jobs_of(file)]


def test_settings_of_the_command_line_win(write: Any) -> None:
    (job,) = jobs_of(
        write(methods=["er"], config={"training": {"epochs": 1}}), "training.epochs=4", "data.limit.test=3"
    )
    assert (job.config.training.epochs, job.config.data.limit.test) == (4, 3)
    assert job.config.training.global_batch_size == 8  # of the base


def test_what_is_untrusted_stays_inside_the_folder(write: Any) -> None:
    methods = {"../../up": "er", "a/b": "er"}
    jobs = jobs_of(write(methods=methods, settings={"data.separator": ["../x", "..", " "]}))
    for job in jobs:
        assert len(job.folder.parts) == 3
        assert ".." not in job.folder.parts
    assert len({job.folder for job in jobs}) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "methods: Field required"),
        ({"methods": []}, "give at least one"),
        ({"methods": ["er", "er"]}, "'er' stands twice"),
        ({"methods": ["nothing"]}, r"methods\.nothing: .*method: unknown method 'nothing'"),
        ({"methods": {"er": {"memori_size": 3}}}, r"unknown key 'memori_size'|memori_size: unknown key"),
        ({"methods": ["er"], "seeds": [1, 1]}, "one stands twice"),
        ({"methods": ["er"], "seeds": [-1]}, "seeds.0"),
        ({"methods": ["er"], "seed": [1]}, "did you mean 'seeds'"),
        ({"methods": ["er"], "orders": [["one", "two"]]}, "is not an order of the tasks one, two, three"),
        ({"methods": ["er"], "orders": 7}, "3 tasks have only 6"),
        ({"methods": ["er"], "settings": {"training.epochs": []}}, "training.epochs has no values"),
        ({"methods": ["er"], "settings": {"training.epoch": [1]}}, "unknown key.*epochs"),
        ({"methods": {"A": "er", "a": "er"}}, "'A' and 'a' would share the folder"),
        ({"methods": ["er"], "base": "gone.yaml"}, "gone.yaml: no such configuration file"),
    ],
)
def test_bad_input_is_named(write: Any, content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        jobs_of(write(**content))


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_sweeps_load(file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    base = yaml.safe_load((file.parent / content["base"]).read_text(encoding="utf-8"))
    for task in base["data"]["tasks"]:
        folder = tmp_path / (task if isinstance(task, str) else task["name"])
        folder.mkdir()
        for split in ("train", "eval", "test"):
            rows = [{"prompt": f"{split} {n}", "answer": "A" if n % 2 else "B"} for n in range(4)]
            (folder / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    jobs = jobs_of(file, f"data.path={tmp_path}", f"model.name={tmp_path}")
    orders, seeds = (n if isinstance(n, int) else len(n) for n in (content["orders"], content["seeds"]))
    assert len(jobs) == len(content["methods"]) * orders * seeds
