"""The model's chat template: messages in it, the end of a turn, and what it must show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from ilora.errors import InputError

DATE = "26 Jul 2024"  # as Llama 3's template has it where none is given
_DATED = f"{{%- macro strftime_now(format) -%}}{DATE}{{%- endmacro -%}}"  # in place of the function of that name
_PROBE = ({"role": "user", "content": "question"},)


def in_template(
    tokenizer: Any, turns: Sequence[Mapping[str, Any]], *, tools: Sequence[Any] = (), asks: bool = True
) -> str:
    """The messages in the model's chat template, with the tools if it shows those. asks: with what an answer follows.

    A template that writes the date gets always the same one: else a run that is resumed another day would read other
    rows. Raises TemplateError.
    """
    try:
        template = tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            chat_template=_DATED + template if "strftime_now" in template else template,
            tools=list(tools) or None,
            tokenize=False,
            add_generation_prompt=asks,
            date_string=DATE,
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # a template may fail in any of its expressions
        raise TemplateError(f"{type(error).__name__}: {error}") from error
    return str(text)


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The control tokens of the tokenizer, by id."""
    added = {int(number): str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | {
        int(number): str(token)
        for number, token in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    }


def end_of_turn(tokenizer: Any) -> int:
    """The token with which the chat template ends an assistant's turn; end-of-text where it has none of its own."""
    text_end = int(tokenizer.eos_token_id)
    try:
        whole = in_template(tokenizer, [*_PROBE, {"role": "assistant", "content": "answer"}], asks=False)
    except TemplateError:
        return text_end
    behind = whole[whole.lower().rfind("answer") + len("answer") :]
    special = special_tokens(tokenizer)
    ids = tokenizer(behind, add_special_tokens=False).input_ids
    return next((int(number) for number in ids if number in special), text_end)


def refuse_without_text(tokenizer: Any) -> None:
    """Raises InputError for a template that shows nothing of a message's text, as one for lists of parts does."""
    try:
        shown = "question" in in_template(tokenizer, _PROBE).lower()
    except TemplateError:
        return  # it asks for other messages; a row that it refuses is named
    if not shown:
        raise InputError(
            "data.template: chat, but the model's chat template leaves out the text of a message (it is made for "
            "lists of parts); use none or alpaca"
        )
