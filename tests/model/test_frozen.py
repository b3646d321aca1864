"""States of the frozen layers below the adapter: the same run, without computing them again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config

from ilora import RunResult, resume, run
from ilora.config import load_config
from ilora.data.examples import Example
from ilora.errors import InputError
from ilora.model.frozen import Below
from tests.helpers import CALLS, FEW_SCORES, MakeConfig, difference, run_killed, settings, weights

LAST_LAYER = ("adapter.layers=1", "adapter.dropout=0")
SHORT = ("data.tasks=[one, two]", "training.epochs=1", *FEW_SCORES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ILORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ranked(make_config: MakeConfig, *overrides: str, **sections: Any) -> Any:
    """Two tasks of three steps, whose answers are ranked."""
    config = make_config(*LAST_LAYER, *SHORT, *overrides, **sections).dump()
    for task in config["data"]["tasks"]:
        task["scoring"] = "rank"
    return load_config(config)


def scores(result: RunResult) -> dict[str, Any]:
    return {name: variant["R"] for name, variant in result.results["variants"].items()}


@pytest.mark.parametrize("name", CALLS)
def test_a_run_is_the_same(name: str, make_config: MakeConfig, tmp_path: Path) -> None:
    plain = run(ranked(make_config, method=settings(name)), tmp_path / "plain", quiet=True)
    below = ranked(make_config, "adapter.keep_below=true", method=settings(name))
    kept = run(below, tmp_path / "kept", quiet=True)
    assert difference(weights(plain.path), weights(kept.path)) <= 1e-5
    assert scores(plain) == scores(kept)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_the_lower_layers_are_never_run_again(
    layers: str, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = settings("ilora") | {"consistency_layers": layers}
    config = ranked(make_config, "adapter.keep_below=true", method=method)
    first = run(config, tmp_path / "first", quiet=True)
    seen: list[int] = []
    prepare = Below.prepare

    def watched(self: Below, *args: Any, **kwargs: Any) -> None:
        self.lower[0].register_forward_hook(lambda *_: seen.append(1))
        prepare(self, *args, **kwargs)

    monkeypatch.setattr(Below, "prepare", watched)
    again = run(config, tmp_path / "again", quiet=True)
    assert not seen
    assert difference(weights(first.path), weights(again.path)) == 0.0
    assert first.results["variants"] == again.results["variants"]


def test_resume_gives_the_same_bits_even_without_the_files(
    make_config: MakeConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ranked(make_config, "adapter.keep_below=true", method=settings("ilora"))
    whole = run(config, tmp_path / "whole", quiet=True)
    run_killed(config, tmp_path / "killed", monkeypatch, at="step", count=5)
    shutil.rmtree(cache / "below")
    resumed = resume(tmp_path / "killed", quiet=True)
    assert difference(weights(whole.path), weights(resumed.path)) == 0.0
    assert resumed.results["variants"] == whole.results["variants"]


def test_a_damaged_file_is_made_again(make_config: MakeConfig, cache: Path, tmp_path: Path) -> None:
    config = ranked(make_config, "adapter.keep_below=true")
    first = run(config, tmp_path / "first", quiet=True)
    files = sorted((cache / "below").glob("*.safetensors"))
    assert files
    sound = [file.read_bytes() for file in files]
    for file, content in zip(files, sound, strict=True):
        file.write_bytes(content[: len(content) // 2])
    second = run(config, tmp_path / "second", quiet=True)
    assert [file.read_bytes() for file in files] == sound
    assert difference(weights(first.path), weights(second.path)) == 0.0


def tiny(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def test_the_file_is_of_these_weights_and_these_rows(tiny_model: Path, cache: Path) -> None:
    rows = [Example("one", "0", [5, 6, 7], [8, 1]), Example("one", "1", [9, 4], [3, 1])]
    core = tiny(tiny_model)
    Below(core, above=1, folder=cache).prepare(rows)
    Below(tiny(tiny_model), above=1, folder=cache).prepare(rows)
    assert len(list(cache.glob("*.safetensors"))) == 1
    Below(core, above=1, folder=cache).prepare(rows[:1])
    assert len(list(cache.glob("*.safetensors"))) == 2
    with torch.no_grad():
        core.model.layers[1].mlp.up_proj.weight.add_(1)  # above: the states below are as before
    Below(core, above=1, folder=cache).prepare(rows)
    assert len(list(cache.glob("*.safetensors"))) == 2
    with torch.no_grad():
        core.model.layers[0].mlp.up_proj.weight.add_(1)
    Below(core, above=1, folder=cache).prepare(rows)
    assert len(list(cache.glob("*.safetensors"))) == 3


def test_passing_rows_are_in_memory_alone_until_the_next_ones(tiny_model: Path, cache: Path) -> None:
    data = [Example("one", "0", [5, 6, 7], [8, 1])]
    first = [Example("one", "a", [9, 4], [3, 2, 1], pseudo=True), Example("one", "b", [9, 4], [8, 1], pseudo=True)]
    second = [Example("one", "c", [9, 4], [8, 1], pseudo=True), Example("one", "d", [5, 6, 7], [4, 1], pseudo=True)]
    below, other = (Below(tiny(tiny_model), above=1, folder=cache) for _ in range(2))
    for one in (below, other):
        one.prepare(data)
    files = sorted(cache.iterdir())
    below.prepare_passing(first)
    assert all(map(below.knows, data + first))
    below.prepare_passing(second)
    other.prepare_passing(second)  # as after a resume
    assert all(map(below.knows, data + second))
    assert not below.knows(first[0])
    for row in data + second:
        mine, theirs = (one.states([row], length=len(row), device=torch.device("cpu")) for one in (below, other))
        assert torch.equal(mine, theirs)
    assert sorted(cache.iterdir()) == files


def test_states_do_not_depend_on_gradient_checkpointing(tiny_model: Path, cache: Path) -> None:
    """In training it would pass on no cache, and answers would be read without their prompt."""
    rows = [Example("one", "a", [9, 4], [3, 2, 1]), Example("one", "b", [9, 4], [8, 1])]
    plain, training = tiny(tiny_model), tiny(tiny_model)
    training.gradient_checkpointing_enable()
    training.train()
    one, other = (Below(core, above=1, folder=cache) for core in (plain.eval(), training))
    for below in (one, other):
        below.prepare_passing(rows)
    assert training.model.training
    for row in rows:
        states = [below.states([row], length=len(row), device=torch.device("cpu")) for below in (one, other)]
        torch.testing.assert_close(states[0], states[1])


def test_a_run_with_rows_of_its_own_goes_on_to_the_same_bits(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ranked(make_config, "adapter.keep_below=true", method={"name": "ilora+", "memory_size": 20})
    whole = run(config, tmp_path / "whole", quiet=True)
    assert whole.results["notes"]["pseudo_rows"]["two"] > 0
    run_killed(config, tmp_path / "killed", monkeypatch, at="step", count=5)
    resumed = resume(tmp_path / "killed", quiet=True)
    assert difference(weights(whole.path), weights(resumed.path)) == 0.0
    assert resumed.results["notes"] == whole.results["notes"]


def test_states_are_those_of_the_whole_model(tiny_model: Path, cache: Path) -> None:
    rows = [
        Example("one", "0", [5, 6, 7], [8, 1]),
        Example("one", "1", [9, 4], [3, 2, 1]),
        Example("one", "1", [9, 4], [8, 1]),
        Example("one", "1", [9, 4], [7, 7, 7, 1]),
        Example("one", "1", [9, 4, 7], [7, 7, 1]),  # the row before, divided in another way
    ]
    core = tiny(tiny_model)
    kept = Below(core, above=1, folder=cache)
    kept.prepare(rows)
    for row in rows:
        ids = row.prompt + row.answer
        expected = core.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
        found = kept.states([row], length=len(ids), device=torch.device("cpu"))[0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert kept.knows(row)
        assert kept.knows(replace(row, answer=[]))
        assert not kept.knows(replace(row, answer=[2]))
    padded = kept.states(rows[:2], length=6, device=torch.device("cpu"))
    assert padded.shape == (2, 6, 32)
    assert not padded[:, 0].any()
    more = kept.behind(rows[:2], 2, torch.device("cpu"))
    torch.testing.assert_close(more, torch.stack([padded[0, 4:6], padded[1, 3:5]]))
    wide = kept.behind(rows[:2], 3, torch.device("cpu"))
    assert not wide[0, 2].any()


def test_a_prompt_is_stored_once_for_all_its_answers(tiny_model: Path, cache: Path) -> None:
    prompt, answers = [5, 6, 7, 8, 9], [[8, 1], [7, 1], [6, 5, 1]]
    Below(tiny(tiny_model), above=1, folder=cache).prepare([Example("one", "0", prompt, ids) for ids in answers])
    (file,) = cache.glob("*.safetensors")
    assert load_file(file)["states"].shape == (5 + 2 + 2 + 3, 32)


def test_a_cache_that_cannot_be_written_costs_time_only(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    rows = [Example("one", "0", [5, 6, 7], [8, 1])]
    kept = Below(tiny(tiny_model), above=1, folder=tmp_path / "file" / "below")
    with pytest.warns(UserWarning, match="states cannot be kept"):
        kept.prepare(rows)
    assert kept.knows(rows[0])


def test_a_stop_ends_the_work(tiny_model: Path, cache: Path) -> None:
    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    kept = Below(tiny(tiny_model), above=1, folder=cache)
    with pytest.raises(KeyboardInterrupt):
        kept.prepare([Example("one", "0", [5, 6, 7], [8, 1])], advance=stop)
    assert not list(cache.glob("*.safetensors"))
    assert len(kept.decoder.layers) == 2


def test_an_adapter_below_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    modules = "adapter.target_modules=[q_proj, model.layers.0.self_attn.v_proj]"
    with pytest.raises(InputError, match="target_modules reaches below the last layers"):
        run(make_config(*LAST_LAYER, "adapter.keep_below=true", modules), tmp_path / "run", quiet=True)


def test_what_cannot_be_kept_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter.*needs `layers`"):
        make_config("adapter.keep_below=true")
    core = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=20))
    with pytest.raises(InputError, match=r"adapter.keep_below: not for models of type gpt2; it knows llama"):
        Below(core, above=1, folder=tmp_path)


def test_more_layers_than_there_are(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter.layers: 3, but this model has 2 layers"):
        run(make_config("adapter.layers=3"), tmp_path / "run", quiet=True)
