"""How a prompt must be written for the adapter, and how an answer is generated: as it was trained and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from ilora.data.encoding import Encoder
from ilora.data.task import Task
from ilora.errors import InputError
from ilora.handover.source import Source
from ilora.model.identity import tokenizer_sha256
from ilora.model.load import load_tokenizer, model_config, resolve
from ilora.results.reader import prompt_template
from ilora.settings import ModelConfig


@dataclass(frozen=True)
class Asking:
    """The form of a prompt, and the settings of greedy generation.

    template: chat, alpaca or none: that of the last task. others: by name, the tasks that were asked in another one.
    separator: what stands between prompt and answer without a template; the model
    writes it. open_end: the tokenizer puts end-of-text behind a prompt, which must be taken off.
    ends: tokens with which an answer ends, the trained one first; end_text: that one as text.
    max_new_tokens: of the task with the longest answers.
    dated: how the chat template gets the date: `argument`, `clock` (its own), or None where it shows none.
    """

    template: str
    others: dict[str, str]
    separator: str
    open_end: bool
    ends: tuple[int, ...]
    end_text: str
    pad: int
    max_new_tokens: int
    dated: str | None
    tokenizer_sha256: str

    def generation(self) -> GenerationConfig:
        """Greedy, as the scores were measured."""
        return GenerationConfig(
            do_sample=False, eos_token_id=list(self.ends), pad_token_id=self.pad, max_new_tokens=self.max_new_tokens
        )


def asking(source: Source) -> Asking:
    """Read the base model's tokenizer and settings. Raises InputError where they are not those of the run."""
    tokenizer = load_tokenizer(source.model)
    digest = tokenizer_sha256(tokenizer)
    known = source.results.get("tokenizer_sha256")
    if known and known != digest:
        raise InputError(f"model '{source.model.name}': its tokenizer is not the one that the run was made with")
    encoder = Encoder(tokenizer, source.config.data, ends=_ends(source.model))
    encoder = encoder.of(Task("last", {}, template=prompt_template(source.results, source.stage)))
    limits = [int(task.task["max_new_tokens"]) for task in source.tasks if task.task.get("max_new_tokens")]
    closed = tokenizer("a", verbose=False).input_ids
    return Asking(
        template=encoder.config.template,
        others=_other_templates(source, encoder.config.template),
        separator=encoder.config.separator,
        open_end=encoder.config.template != "chat" and closed[-1:] == [tokenizer.eos_token_id],
        ends=encoder.ends,
        end_text=str(tokenizer.convert_ids_to_tokens(encoder.end)),
        pad=encoder.pad,
        max_new_tokens=max(limits, default=32),
        dated=_dated(tokenizer) if encoder.config.template == "chat" else None,
        tokenizer_sha256=digest,
    )


def _other_templates(source: Source, last: str) -> dict[str, str]:
    run = source.config.data.template
    found = {str(task.task["name"]): str(task.task.get("template") or run) for task in source.tasks}
    return {name: template for name, template in found.items() if template not in (last, "auto")}


def _ends(model: ModelConfig) -> list[int]:
    """The tokens that end an answer, as the base model's own generation settings name them."""
    try:
        found = GenerationConfig.from_pretrained(resolve(model.name), revision=model.revision).eos_token_id
    except OSError:  # it has none: transformers then takes them from config.json
        found = GenerationConfig.from_model_config(model_config(model)).eos_token_id
    return [] if found is None else found if isinstance(found, list) else [found]


def _dated(tokenizer: Any) -> str | None:
    template = str(tokenizer.get_chat_template())
    return "clock" if "strftime_now" in template else "argument" if "date_string" in template else None
