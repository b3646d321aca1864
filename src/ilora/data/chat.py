"""Conversations as rows: messages as chat models take them, ShareGPT's turns, content in parts, calls of tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ilora.data.rows import filled
from ilora.data.tables import Problem, kind
from ilora.data.task import Row

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "tool": "tool", "observation": "tool",
}  # fmt: skip
_KEPT = ("tool_calls", "tool_call_id", "name")  # what a template may show of a message beside its text


def chat_row(messages: Any, name: str, *, system: Any = None, tools: Any = None) -> Row:
    """The row of a conversation whose last message is the assistant's: that is the answer.

    messages: `{"role", "content"}` or ShareGPT's `{"from", "value"}`, as a list or as JSON text. Content may be a
    list of text parts.
    name: what the messages are called in the file.
    system: text of a message before the others.
    tools: definitions of functions, for the model's chat template, as a list or as JSON text.
    Raises Problem.
    """
    listed = _list(messages, name)
    if len(listed) < 2:
        raise Problem(f"'{name}' must be a list of at least two messages")
    turns = [_turn(message, f"{name}[{number}]") for number, message in enumerate(listed, 1)]
    if system is not None and str(system).strip():
        turns.insert(0, {"role": "system", "content": filled(system, "system")})
    *before, last = turns
    if last["role"] != "assistant":
        raise Problem(
            f"the last of '{name}' is from the {last['role']}; it must be the assistant's, as the answer: "
            "data.unanswered=drop leaves out what stands behind the last answer"
        )
    if not any(turn["role"] == "user" for turn in before):
        raise Problem(f"'{name}' has no message of the user before the answer")
    if not last["content"]:
        raise Problem(f"the last of '{name}' only calls a tool; the answer must be a text")
    return Row(plain_turns(before), last["content"], tuple(before), tuple(_list(tools or [], "tools")))


def answered(messages: Any) -> list[Any] | None:
    """The messages up to the assistant's last one; None where that is the last of all, or nothing can be told."""
    try:
        listed = _list(messages, "")
    except Problem:
        return None
    roles = [one.get("role", one.get("from")) if isinstance(one, Mapping) else None for one in listed]
    places = [
        place for place, role in enumerate(roles, 1) if isinstance(role, str) and _SHAREGPT.get(role) == "assistant"
    ]
    return listed[: places[-1]] if places and places[-1] < len(listed) else None


def every_turn(row: Row) -> Iterator[Row]:
    """The row of each of the assistant's turns with a text, in their order; the last is the row itself."""
    for number, turn in enumerate(row.messages):
        before = row.messages[:number]
        if turn["role"] == "assistant" and turn["content"] and any(one["role"] == "user" for one in before):
            yield Row(plain_turns(before), turn["content"], before, row.tools)
    yield row


def plain_turns(turns: Sequence[Mapping[str, Any]]) -> str:
    """The turns with a blank line between; with their roles if the assistant has spoken among them."""
    if all(turn["role"] != "assistant" for turn in turns):
        return "\n\n".join(turn["content"] for turn in turns)
    named = [f"{turn['role'].capitalize()}: {_shown(turn)}" for turn in turns]
    return "\n\n".join([*named, "Assistant:"])


def _shown(turn: Mapping[str, Any]) -> str:
    calls = [json.dumps(call, ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return "\n".join(filter(None, [turn["content"], *calls]))


def _list(value: Any, name: str) -> list[Any]:
    """A list, which may stand as JSON text in a cell of a table."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Problem(f"'{name}' is not valid JSON") from None
    if not isinstance(value, list):
        raise Problem(f"'{name}' must be a list, found {kind(value)}")
    return value


def _turn(message: Any, where: str) -> dict[str, Any]:
    """One message: its role, its text, and what a template needs of a tool's call."""
    if isinstance(message, Mapping) and {"from", "value"} <= set(message):
        role, text = message["from"], message["value"]
        message = {"role": _SHAREGPT.get(role, role) if isinstance(role, str) else role, "content": text}
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or "role" not in message or not ("content" in message or calls):
        raise Problem(f"'{where}' must be an object with 'role' and 'content' (or 'from' and 'value')")
    if message["role"] not in ROLES:
        raise Problem(f"'{where}' has the role {message['role']!r}; allowed are {', '.join(ROLES)}")
    kept = {key: message[key] for key in _KEPT if message.get(key)}
    if calls and message.get("content") in (None, ""):
        return {"role": message["role"], "content": "", **kept}
    return {"role": message["role"], "content": _text(message.get("content"), f"{where}.content"), **kept}


def _text(content: Any, name: str) -> str:
    """A message's text, from one text or from a list of text parts."""
    if not isinstance(content, list):
        return filled(content, name)
    texts = []
    for number, part in enumerate(content, 1):
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            what = repr(part.get("type")) if isinstance(part, Mapping) else kind(part)
            raise Problem(f"'{name}[{number}]' is {what}; of a message's parts only texts can be read")
        texts.append(filled(part.get("text"), f"{name}[{number}].text"))
    return filled("\n".join(texts), name)
