"""Which base model a run has: in adapters, checkpoints, results and comparisons."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ilora import InputError, resume, run
from ilora.commands.compare import compare
from ilora.model.identity import FILE, BaseModel, weights_sha256
from ilora.settings import ModelConfig
from tests.helpers import MakeConfig, plain, run_killed

SHORT = ("data.tasks=[one, two]", "training.epochs=1", "method=sequential")


def scaled(model: Path, by: float) -> None:
    """Other weights in a model's folder."""
    file = model / "model.safetensors"
    save_file({key: by * value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})


def test_the_hash_is_of_names_and_bytes(tiny_model: Path) -> None:
    one, other = plain(tiny_model), plain(tiny_model)
    assert weights_sha256(one) == weights_sha256(other)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    assert weights_sha256(one) != weights_sha256(other)
    assert weights_sha256(one) != weights_sha256(one.to(torch.bfloat16))


def test_an_alias_is_named_by_its_hub_id(tiny_model: Path) -> None:
    found = BaseModel.of(plain(tiny_model), ModelConfig(name="smollm2-135m"))
    assert (found.name, found.alias) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m")
    assert BaseModel.of(plain(tiny_model), ModelConfig(name="owner/model", revision="v2")).revision == "v2"


def test_a_run_notes_it_everywhere(make_config: MakeConfig, tiny_model: Path, tmp_path: Path) -> None:
    made = run(make_config(*SHORT), tmp_path / "run", quiet=True)
    expected = weights_sha256(plain(tiny_model))
    assert made.results["base"] == {
        "name": str(tiny_model), "revision": None, "alias": None, "weights_sha256": expected
    }  # fmt: skip
    assert made.adapter is not None
    for folder in (file.parent for file in made.path.glob("adapters/*/*/adapter_config.json")):
        assert json.loads((folder / FILE).read_text()) == made.results["base"]
    for state in made.path.glob("checkpoints/*/state.json"):
        assert json.loads(state.read_text())["values"]["base"] == made.results["base"]


def test_a_resume_on_other_weights_is_refused(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    run_killed(make_config(*SHORT, f"model.name={model}"), tmp_path / "run", monkeypatch, at="step", count=2)
    scaled(model, 1.5)
    with pytest.raises(InputError, match=r"model '.*model': its weights changed since the run began"):
        resume(tmp_path / "run", quiet=True)
    scaled(model, 1 / 1.5)


def test_a_copy_of_the_model_is_the_same_model_and_other_weights_are_not(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    run(make_config(*SHORT), tmp_path / "runs" / "a", quiet=True)
    run(make_config(*SHORT, "method=er", f"model.name={copy}"), tmp_path / "runs" / "b", quiet=True)
    assert len(compare([tmp_path / "runs"], out=tmp_path / "out")[0]["rows"]) == 2
    scaled(copy, 1.5)
    run(make_config(*SHORT, "seed=1", f"model.name={copy}"), tmp_path / "runs" / "c", quiet=True)
    with pytest.raises(InputError, match=r"different models: .*weights"):
        compare([tmp_path / "runs"], out=tmp_path / "out")
