"""`ilora export`: what lies in the folder, what the card says, and that others get the same answers from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ilora import InputError, cli, run
from ilora.commands.export import export
from ilora.handover import export as module
from ilora.handover.asking import asking
from ilora.handover.card import Wishes, card
from ilora.handover.export import export_source
from ilora.handover.source import from_run
from tests.helpers import MakeConfig, plain

pytestmark = pytest.mark.xdist_group("handover")  # one worker makes the run

PLAIN = Wishes()


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        finished, tmp_path_factory.mktemp("exported") / "folder", licence="apache-2.0", languages=["en"]
    ).folder


def predictions(run_folder: Path, phase: str = "after-02-two") -> dict[str, list[dict[str, Any]]]:
    """By task, what the answering adapter said."""
    files = sorted((run_folder / "predictions" / phase).glob("*.jsonl"))
    return {file.stem: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files}


def snippet(folder: Path, base: Path) -> str:
    """The card's Python lines, with the place of the base model filled in as its user would."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found is not None
    return found[1].replace('"path/to/the/base/model"', repr(str(base)))


@pytest.mark.slow
def test_a_fresh_environment_answers_the_same(exported: Path, finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Plain transformers and PEFT, in a process with another home, by the lines of the card."""
    asked = {task: [record["prompt"] for record in records] for task, records in predictions(finished).items()}
    limits = {
        task["name"]: task["max_new_tokens"] for task in json.loads((exported / "ilora.json").read_text())["tasks"]
    }
    moved, home = tmp_path / "elsewhere", tmp_path / "home"
    shutil.copytree(exported, moved)
    home.mkdir()
    (tmp_path / "ask.py").write_text(
        f"{snippet(moved, tiny_model)}\n"
        f"import json, sys\n"
        f"found = {{}}\n"
        f"for task, prompts in {asked!r}.items():\n"
        f"    model.generation_config.max_new_tokens = {limits!r}[task]\n"
        f"    found[task] = [answer(prompt) for prompt in prompts]\n"
        f"assert not any(name.partition('.')[0] == 'ilora' for name in sys.modules)\n"
        f"print(json.dumps(found))\n",
        encoding="utf-8",
    )
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ILORA_CACHE")}
    done = subprocess.run(
        [sys.executable, "-P", str(tmp_path / "ask.py")],
        cwd=moved,
        env=kept | {"HOME": str(home), "HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    expected = {task: [record["prediction"] for record in records] for task, records in predictions(finished).items()}
    assert answers == expected
    assert len({answer for every in answers.values() for answer in every}) > 2


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_the_card_writes_prompts_as_the_run_did(
    template: str, make_config: MakeConfig, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("data.tasks=[one]", f"data.template={template}", "data.max_length=128", "method=sequential")
    made = run(config, tmp_path / "run", quiet=True)
    folder = export(made.path, tmp_path / "folder", kind="peft").folder
    modelfile = (folder / "README.md").read_text(encoding="utf-8").partition("FROM path")[2]
    alpaca = '### Instruction:\n{{ .Prompt }}\n\n### Response:\n"""'
    assert (alpaca in modelfile, "TEMPLATE" in modelfile) == (template == "alpaca", template == "alpaca")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(snippet(folder, tiny_model), "README.md", "exec"), names)
    names["model"].generation_config.max_new_tokens = made.results["tasks"][0]["max_new_tokens"]
    records = predictions(made.path, "after-01-one")["one"]
    assert [names["answer"](record["prompt"]) for record in records] == [record["prediction"] for record in records]


def test_the_folder(exported: Path, finished: Path, tiny_model: Path) -> None:
    names = {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "base_model.json",
        "generation_config.json",
    }
    assert {path.name for path in exported.iterdir()} == names | {"ilora.json"}
    assert not [path for path in exported.parent.iterdir() if path.name.startswith(".")]
    whole = b"".join(path.read_bytes() for path in exported.iterdir())
    assert str(tiny_model).encode() not in whole  # nor any other place on this machine
    assert str(finished).encode() not in whole
    settings = json.loads((exported / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None
    facts = json.loads((exported / "ilora.json").read_text())
    results = json.loads((finished / "results.json").read_text())
    assert facts["base_model"]["weights_sha256"] == results["base"]["weights_sha256"]
    assert facts["base_model"]["hub_id"] is None
    assert facts["prompt"] == {
        "template": "none",
        "other_templates": {},
        "separator": " ",
        "end": "</s>",
        "max_length": 64,
    }
    assert facts["generation"]["eos_token_id"] == [1]
    variant = results["variants"]["slow"]
    assert [task["score"] for task in facts["tasks"]] == variant["R"][1]
    assert [task["standard_error"] for task in facts["tasks"]] == variant["se"][1]
    assert facts["tasks"][0]["forgotten"] == variant["R"][0][0] - variant["R"][1][0]
    assert [task["train_sha256"] for task in facts["tasks"]] == [task["train_sha256"] for task in results["tasks"]]


def test_the_hub_can_read_the_card(exported: Path, finished: Path) -> None:
    found = ModelCard.load(exported / "README.md")
    assert (found.data.license, found.data.language, found.data.library_name) == ("apache-2.0", ["en"], "peft")
    assert (found.data.pipeline_tag, found.data.base_model) == ("text-generation", None)
    scores = json.loads((finished / "results.json").read_text())["variants"]["slow"]["R"][1]
    assert [result.metric_value for result in found.data.eval_results] == [round(score, 4) for score in scores]
    assert [result.dataset_name for result in found.data.eval_results] == ["one", "two"]


def test_the_base_by_its_hub_id(finished: Path, tmp_path: Path) -> None:
    folder = export(finished, tmp_path / "folder", base="owner/model@abc").folder
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("owner/model", "abc")
    found = ModelCard.load(folder / "README.md")
    assert found.data.base_model == "owner/model"
    assert found.data.get("base_model_relation") == "adapter"
    assert 'from_pretrained(base, revision="abc"' in found.content
    with pytest.raises(InputError, match="--base"):
        export(finished, tmp_path / "other", base="no id")


def test_a_folder_of_the_hubs_cache_is_its_hub_id(finished: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(finished / "adapters" / "02-two" / "slow", adapter)
    noted = json.loads((adapter / "base_model.json").read_text())
    place = "/home/me/.cache/huggingface/hub/models--owner--model/snapshots/0123"
    (adapter / "base_model.json").write_text(json.dumps(noted | {"name": place}))
    source = replace(from_run(finished), adapter=adapter)
    assert (source.base.name, source.base.revision, source.base_on_hub) == ("owner/model", "0123", True)


def test_texts_of_others_stay_texts(finished: Path) -> None:
    source = from_run(finished)
    evil = "a | b\n---\n# c `d` <script>e</script> [f](g) {{ 1 + 1 }}: 'h' \"i\""
    results = json.loads(json.dumps(dict(source.results)))
    results["tasks"][0]["name"], results["phases"][0], results["name"] = evil, evil, evil
    source = replace(source, results=results)
    for kind in ("peft", "merged", "gguf"):
        text = card(source, asking(source), kind=kind, wishes=PLAIN)
        _, head, body = text.split("---\n", 2)
        found = ModelCard(text)
        assert "<script>" not in body
        assert "[f](g)" not in body
        assert "\n# c" not in text
        assert "{{ 1 + 1 }}" in body.replace("\\", "")
        assert found.data.eval_results[0].dataset_name == evil.replace("\n", " ")
        assert head.count("model-index") == 1
        tables = [line for line in body.splitlines() if line.startswith("|")]
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
        assert cells == {9, 6}


def test_a_quantized_base_is_loaded_as_the_run_did(finished: Path) -> None:
    source = from_run(finished, base="owner/model")
    model = source.config.model.model_copy(update={"quantization": "4bit"})
    quantized = replace(source, config=source.config.model_copy(update={"model": model}))
    lines = re.search(
        r"```python\n(.*?)```", card(quantized, asking(source), kind="peft", wishes=PLAIN), flags=re.DOTALL
    )
    assert lines is not None
    compile(lines[1], "README.md", "exec")
    asked = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    written = re.search(r"weights = (.*)", lines[1])
    assert written is not None
    made = eval(written[1], {"BitsAndBytesConfig": BitsAndBytesConfig, "torch": torch})
    assert made.to_dict() == asked.to_dict()


def test_an_earlier_phase_has_its_own_scores(finished: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("01-one", "1", "one")):
        folder = export(finished, tmp_path / str(number), phase=name, variant="fast").folder
        facts = json.loads((folder / "ilora.json").read_text())
        variant = json.loads((finished / "results.json").read_text())["variants"]["fast"]
        assert [(task["name"], task["score"]) for task in facts["tasks"]] == [("one", variant["R"][0][0])]
        assert (facts["stage"], facts["variant"]) == (1, "fast")
        ours = load_file(folder / "adapter_model.safetensors")
        theirs = load_file(finished / "adapters" / "01-one" / "fast" / "adapter_model.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_merged_run(finished: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(finished, tmp_path / "merged", kind="merged").folder
    assert (folder / "tokenizer.json").is_file()
    ours = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    adapter = json.loads((finished / "results.json").read_text())["adapter"]
    theirs = PeftModel.from_pretrained(plain(tiny_model), finished / adapter).merge_and_unload().state_dict()
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in theirs) <= 1e-6
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(snippet(folder, tiny_model), "README.md", "exec"), names)
    records = predictions(finished)["one"]
    names["model"].generation_config.max_new_tokens = 4
    assert [names["answer"](record["prompt"]) for record in records] == [record["prediction"] for record in records]


def test_a_kill_leaves_nothing_half(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(source: object, folder: Path) -> None:
        (folder / "half").write_text("a")
        raise Killed

    to = tmp_path / "folder"
    with monkeypatch.context() as patch:
        patch.setitem(module.KINDS, "peft", die)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill cleans nothing up
        with pytest.raises(Killed):
            export(finished, to)
    assert not to.exists()
    to.mkdir()  # an empty folder may be there
    export_source(from_run(finished), to, kind="peft", wishes=PLAIN)
    assert not (to / "half").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--as", "onnx"], "peft, merged, gguf"),
        (["--phase", "four"], "01-one, 02-two"),
        (["--variant", "best"], "slow"),
        (["--private"], "--push"),
        (["--push", "nobody"], "OWNER/NAME"),
        (["--push", "owner/name"], "HF_TOKEN"),
    ],
)
def test_bad_input_is_refused(
    options: list[str],
    says: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ilora.handover.push.get_token", lambda: None)
    monkeypatch.setattr("sys.argv", ["ilora", "export", str(finished), "--to", str(tmp_path / "new"), *options])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_kept(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export(finished, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_adapter_of_an_older_version_is_refused_with_the_way_out(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for file in run.glob("adapters/*/*/base_model.json"):
        file.unlink()
    with pytest.raises(InputError, match=r"02-two/.*: no base_model\.json in it.* Copy the base_model\.json") as found:
        export(run, tmp_path / "out")
    assert "Errno" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_a_run_without_one_adapter_is_refused(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(finished, other)
    results = json.loads((other / "results.json").read_text())
    (other / "results.json").write_text(json.dumps(results | {"adapter": None, "method": "l2p"}))
    with pytest.raises(InputError, match="l2p"):
        export(other, tmp_path / "new")


def test_another_tokenizer_is_refused(finished: Path) -> None:
    source = from_run(finished)
    with pytest.raises(InputError, match="tokenizer"):
        asking(replace(source, results={**source.results, "tokenizer_sha256": 64 * "0"}))


def test_a_run_leaves_no_empty_card(finished: Path) -> None:
    assert not list((finished / "adapters").rglob("README.md"))
