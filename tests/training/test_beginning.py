"""A run that starts from an adapter of another run or trainer, and from rows of what that has learnt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from ilora import InputError, RunResult, add, load_config, resume, run
from ilora.config import Config
from ilora.methods import METHODS
from ilora.model import adapters
from ilora.releases import change
from ilora.training.checkpoint import load_latest
from ilora.training.session import Session
from tests.helpers import (
    FEW_SCORES,
    MakeConfig,
    begin,
    difference,
    plain,
    run_killed,
    settings,
    snapshot,
    task_rows,
    train,
    weights,
)

pytestmark = pytest.mark.xdist_group("beginning")  # one worker makes the whole run

FORM = {"r": 3, "lora_alpha": 12, "target_modules": ["q_proj", "o_proj"], "use_rslora": True}


@pytest.fixture(scope="module")
def made_by_peft(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder of the tiny model, of random weights."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    model = get_peft_model(plain(tiny_model), LoraConfig(**FORM, task_type="CAUSAL_LM"))
    torch.manual_seed(3)
    for name, value in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.1)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of before, in the form of Alpaca."""
    file = tmp_path_factory.mktemp("rows") / "before.jsonl"
    lines = [
        {"instruction": row["prompt"], "input": "", "output": row["answer"]} for row in task_rows("zero", 9, seed=1)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def started(make_config: MakeConfig, folder: Path, *overrides: str, **sections: Any) -> Config:
    return make_config(*FEW_SCORES, *overrides, adapter={"start_from": str(folder), "dropout": 0.0}, **sections)


def beginning(config: Config, folder: Path) -> Session:
    """A session that has taken up what it starts from, before its first step."""
    session = begin(config, folder)
    session.refuse_changes()
    return session


def of(file: Path) -> dict[str, Tensor]:
    return load_file(file / "adapter_model.safetensors")


def memory_of(folder: Path) -> list[str]:
    found, _ = load_latest(folder / "checkpoints")
    assert found is not None
    return [task for task, _ in found.values["memory"]["rows"]]


# -- the adapter -------------------------------------------------------------------------------------------------------


def test_from_the_adapter_of_another_run_is_as_if_its_task_was_added(make_config: MakeConfig, tmp_path: Path) -> None:
    """Without dropout, whose masks are of the run's step, and with sequential fine-tuning, which draws nothing."""
    config = make_config(*FEW_SCORES, "adapter.dropout=0", "data.tasks=[one]", method="sequential")
    first = run(config, tmp_path / "first", quiet=True)
    assert first.adapter is not None
    second = run(
        started(make_config, first.adapter, "data.tasks=[two]", method="sequential"), tmp_path / "second", quiet=True
    )
    added = add(first.path, ["two"], quiet=True)
    assert added.adapter is not None
    assert second.adapter is not None
    assert difference(of(second.adapter), of(added.adapter)) == 0.0
    taken = load_config(second.path / "config.yaml").adapter
    assert (taken.r, taken.alpha, taken.dropout) == (4, 8, 0.0)


def test_from_an_adapter_that_peft_made(make_config: MakeConfig, made_by_peft: Path, tmp_path: Path) -> None:
    config = started(make_config, made_by_peft, "data.tasks=[one]", "training.epochs=1", contrast=["zero_shot"])
    result = run(config, tmp_path / "run", quiet=True)
    taken = load_config(result.path / "config.yaml").adapter
    assert (taken.r, taken.alpha, taken.target_modules, taken.use_rslora) == (3, 12, ["o_proj", "q_proj"], True)
    assert result.results["start"].keys() == {"adapter_sha256"}
    assert result.adapter is not None
    assert of(result.adapter).keys() == of(made_by_peft).keys()
    assert 0 < difference(of(result.adapter), of(made_by_peft)) < 0.1


def test_fast_and_slow_begin_with_it(
    make_config: MakeConfig, made_by_peft: Path, tiny_model: Path, tmp_path: Path
) -> None:
    config = run_config(started(make_config, made_by_peft))
    session = beginning(config, tmp_path / "run")
    model = session.method.engine.model
    session.method.begin_task()
    theirs = of(made_by_peft)
    for name in ("fast", "slow"):
        assert difference(snapshot(model, name), theirs) == 0.0
    with adapters.active(model, "slow"), torch.no_grad():
        ids = torch.arange(12)[None]
        ours = model.eval()(ids).logits
        expected = PeftModel.from_pretrained(plain(tiny_model), str(made_by_peft)).eval()(ids).logits
    assert torch.allclose(ours, expected, atol=1e-5)


def run_config(config: Config) -> Config:
    """As `run` completes it."""
    from ilora.model.start import with_form
    from ilora.stream import load_tasks, resolve

    return resolve(config.model_copy(update={"adapter": with_form(config.adapter)}), load_tasks(config.data))


@pytest.mark.parametrize("name", ["lwf", "wise_ft", "ilora+"])
def test_it_counts_as_the_task_before_the_first(
    name: str, make_config: MakeConfig, made_by_peft: Path, tmp_path: Path
) -> None:
    """LwF has a teacher in the first task; the others end the first task between the start and the new minimum."""
    method = settings(name) | ({} if name == "lwf" else {"t": 0})
    config = run_config(started(make_config, made_by_peft, "data.tasks=[one]", method=method))
    session = beginning(config, tmp_path / "run")
    for _ in train(session):
        pass
    if name == "lwf":
        lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        assert all(line["terms"]["distillation"] > 0 for line in lines[1:])
    else:
        answering = session.method.variants[0]
        assert difference(snapshot(session.method.engine.model, answering), of(made_by_peft)) < 1e-6


REFUSED = {
    "individual", "inflora", "l2p", "olora", "osft", "progressive_prompts", "router", "sd_lora", "slao",
}  # fmt: skip


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_that_begin_anew_are_refused(name: str, make_config: MakeConfig, made_by_peft: Path) -> None:
    if name in REFUSED:
        with pytest.raises(InputError, match=rf"adapter\.start_from: the method {name} .*new weights"):
            started(make_config, made_by_peft, method=name)
    else:
        started(make_config, made_by_peft, method=name)


def changed(folder: Path, target: Path, **values: Any) -> Path:
    """A copy of an adapter's folder with other settings."""
    shutil.copytree(folder, target)
    file = target / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return target


@pytest.mark.parametrize(
    ("settings_of_run", "changes", "message"),
    [
        ({"r": 5}, {}, r"adapter\.r: 5, but .* has 3"),
        ({"target_modules": ["v_proj"]}, {}, r"adapter\.target_modules: \['v_proj'\]"),
        ({"layers": 1}, {}, r"has weights for .*layers\.0.*adapter\.layers"),
        ({}, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({}, {"bias": "all"}, "bias"),
        ({}, {"init_lora_weights": "pissa"}, "pissa"),
        ({}, {"target_modules": ".*q_proj"}, "pattern"),
        ({}, {"r": 6}, r"shape \(3, 32\), this model's adapter \(6, 32\)"),
        ({}, {"target_modules": ["q_proj"]}, "has weights for .*o_proj"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings_of_run: dict[str, Any],
    changes: dict[str, Any],
    message: str,
    make_config: MakeConfig,
    made_by_peft: Path,
    tmp_path: Path,
) -> None:
    folder = changed(made_by_peft, tmp_path / "changed", **changes)
    config = make_config(adapter={"start_from": str(folder), **settings_of_run}, method="sequential")
    with pytest.raises(InputError, match=message):
        run(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_damaged_weights_and_another_base_are_refused(
    make_config: MakeConfig, made_by_peft: Path, tmp_path: Path
) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            run(config, tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()

    folder = changed(made_by_peft, tmp_path / "changed")
    config = started(make_config, folder, method="sequential")
    base = {"name": "other", "revision": None, "alias": None, "weights_sha256": "0" * 64}
    (folder / "base_model.json").write_text(json.dumps(base))
    refused("an adapter of other .*other weights")
    (folder / "base_model.json").unlink()
    tensors = of(folder)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    refused("not finite")
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    refused("adapter_model.safetensors: cannot be read")
    (folder / "adapter_model.safetensors").unlink()
    refused("no adapter_model.safetensors")
    (folder / "adapter_config.json").unlink()
    refused("not a PEFT adapter folder")


def test_the_words_of_the_issue_lead_to_the_settings(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match=r"adapter\.start_from"):
        make_config("method.start_from=somewhere")
    with pytest.raises(InputError, match=r"data\.start_rows"):
        make_config("method.memory_from=somewhere")


# -- the rows ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(
    make_config: MakeConfig, made_by_peft: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    """ER and the like, from an adapter and rows of before."""
    base = tmp_path_factory.mktemp("whole")
    shutil.copytree(made_by_peft, base / "adapter")
    shutil.copy(rows, base / "rows.jsonl")
    contrast = [settings("er"), settings("derpp"), settings("gem"), settings("sequential")]
    overrides = ("data.tasks=[one, two]", "training.epochs=1", f"data.start_rows={base / 'rows.jsonl'}")
    config = started(make_config, base / "adapter", *overrides, method=settings("ilora+"), contrast=contrast)
    return run(config, base / "run", quiet=True)


def test_the_rows_enter_the_memory_by_its_rule(whole: RunResult) -> None:
    counts = {part: memory_of(whole.path / part).count("before") for part in (".", "contrast/er", "contrast/gem")}
    assert counts["."] == 7  # balanced: twenty places for three tasks
    assert all(0 < count < 9 for count in counts.values())
    assert memory_of(whole.path / "contrast/sequential") == []
    assert whole.results["start"]["rows"] == 9
    assert whole.contrast[-1]["start"].keys() == {"adapter_sha256"}
    assert set(whole.results["notes"]["frames"]) == {"before", "one", "two"}
    assert whole.results["notes"]["pseudo_rows"]["one"] == 24
    lines = [json.loads(line) for line in (whole.path / "contrast/er/metrics.jsonl").read_text().splitlines()]
    assert all("ce_replayed" in line["terms"] for line in lines)  # from the first step on


def test_a_stopped_run_goes_on_without_adapter_and_rows(
    whole: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("adapter", "rows.jsonl"):
        source = whole.path.parent / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    config = load_config(whole.path / "config.yaml")
    config = config.model_copy(
        update={
            "contrast": [],
            "adapter": config.adapter.model_copy(update={"start_from": tmp_path / "adapter"}),
            "data": config.data.model_copy(update={"start_rows": tmp_path / "rows.jsonl"}),
        }
    )
    run_killed(config, tmp_path / "run", monkeypatch, at="step", count=4)
    content = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(content.partition("\n")[2])
    with pytest.raises(InputError, match=r"data\.start_rows: .* changed"):
        resume(tmp_path / "run", quiet=True)
    (tmp_path / "rows.jsonl").unlink()
    weights_file = tmp_path / "adapter/adapter_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights_file).items()}, weights_file)
    with pytest.raises(InputError, match=r"adapter\.start_from: .* changed"):
        resume(tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "adapter")
    resume(tmp_path / "run", quiet=True)
    expected = {key: value for key, value in weights(whole.path).items() if not key.startswith("contrast")}
    assert difference(weights(tmp_path / "run"), expected) == 0.0


def test_they_can_be_forgotten(whole: RunResult, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.path, tmp_path / "run"))
    change.promote(folder, report=lambda _run: None)
    change.forget(folder, "before", report=lambda _run: None)
    for part in (".", "contrast/er", "contrast/derpp"):
        assert set(memory_of(folder / part)) == {"one", "two"}
    assert not [file for file in folder.rglob("*") if file.is_file() and b"before/train/" in file.read_bytes()]
    assert load_config(folder / "config.yaml").data.start_rows is None
    again = resume(folder, quiet=True)
    assert set(again.results["notes"]["frames"]) == {"one", "two"}
    with pytest.raises(InputError, match="no task 'before'"):
        change.forget(folder, "before", report=lambda _run: None)


def test_rows_that_nothing_would_remember_are_refused(make_config: MakeConfig, rows: Path) -> None:
    with pytest.raises(InputError, match=r"data\.start_rows: the method ewc has no memory"):
        make_config(f"data.start_rows={rows}", method="ewc")
    with pytest.raises(InputError, match=r"adapter\.keep_below"):
        make_config(f"data.start_rows={rows}", "adapter.layers=1", "adapter.keep_below=true", method="er")
