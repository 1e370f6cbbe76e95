"""The messages of a conversation: what a chat template may be given of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pilotfish_core.errors import InvalidParameter, UnsupportedParameter
from pilotfish_openai.chat_template import ChatTemplate

ROLES: Final = ("system", "developer", "user", "assistant")
_REFUSED: Final = ("tool_calls", "tool_call_id", "function_call", "audio")  # fields of messages


def plain_messages(messages: Sequence[Mapping[str, Any]], template: ChatTemplate) -> list[dict[str, Any]]:
    """Messages (``role``, ``content``: text or text parts, perhaps ``name``) as templates read them.

    Raises InvalidParameter, UnsupportedParameter, naming the place: ``messages[2].role``.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InvalidParameter.of("messages", messages, "a list of messages, at least one")
    return [_plain(message, f"messages[{index}]", template) for index, message in enumerate(messages)]


def _plain(message: Mapping[str, Any], where: str, template: ChatTemplate) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidParameter.of(where, message, 'a message such as {"role": "user", "content": "..."}')
    for field in _REFUSED:
        if message.get(field):
            raise UnsupportedParameter.of(f"{where}.{field}")
    role, name = message.get("role"), message.get("name")
    if role in ("tool", "function"):
        raise UnsupportedParameter.of(f"{where}.role", f"tools are not, so there is no {role!r}")
    if role not in ROLES:
        raise InvalidParameter.of(f"{where}.role", role, f"one of {', '.join(ROLES)}")
    if role == "developer" and not template.knows_developer:
        role = "system"  # OpenAI's newer name of it
    plain: dict[str, Any] = {"role": role, "content": text_of(message.get("content"), f"{where}.content")}
    return plain if name is None else plain | {"name": name}


def text_of(content: object, where: str) -> str:
    """A message's text: a string, or text parts, which are put on lines of their own.

    Raises InvalidParameter, UnsupportedParameter for parts that are no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidParameter.of(where, content, "a string, or a list of text parts")
    texts = []
    for index, part in enumerate(content):
        place = f"{where}[{index}]"
        if not isinstance(part, Mapping):
            raise InvalidParameter.of(place, part, 'a part such as {"type": "text", "text": "..."}')
        if part.get("type") != "text":
            raise UnsupportedParameter.of(f"{place}.type", f"only text is, not {str(part.get('type'))[:40]!r}")
        if not isinstance(part.get("text"), str):
            raise InvalidParameter.of(f"{place}.text", part.get("text"), "a string")
        texts.append(part["text"])
    return "\n".join(texts)
