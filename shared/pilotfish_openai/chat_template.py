"""A model's chat template: messages to the text of a prompt, as Hugging Face templates expect it.

Templates come with the model and run in jinja2's sandbox; what callers send is data to them, never a template.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pilotfish_core.errors import InvalidRequest, ModelLoadError

TEMPLATE_FILE: Final = "chat_template.jinja"
CONFIG_FILE: Final = "tokenizer_config.json"
MAX_RENDERED_CHARS: Final = 16 * 1024 * 1024  # no target's context is as long
MAX_BITS: Final = 4096  # of a power
_TOKENS: Final = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


class ChatTemplate:
    """One compiled template. Immutable, safe in several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, name: str = "chat template") -> None:
        """Raises ModelLoadError, naming ``name``, for what is no template."""
        environment = _Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            optimized=False,  # which would compute constants, however large, before anybody looks
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ModelLoadError(f"{name} is not a usable chat template: {error}") from None
        self.source = source
        self.special_tokens = dict(special_tokens)
        self.knows_developer = "developer" in source  # a role that templates before 2025 refuse

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """The template of a model folder; None where it has none. Raises ModelLoadError (file and reason)."""
        config = _config(folder / CONFIG_FILE)
        special = {name: text for name in _TOKENS if (text := _content(config.get(name))) is not None}
        file = folder / TEMPLATE_FILE
        try:
            return cls(file.read_text(encoding="utf-8"), special, name=str(file))
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError(f"cannot read {file}: {error}") from None
        source = config.get("chat_template")
        if isinstance(source, list):  # several by name
            named = {str(entry.get("name")): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if not isinstance(source, str):
            return None
        return cls(source, special, name=f"chat_template of {folder / CONFIG_FILE}")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. ``extra``: further variables, such as ``enable_thinking``.

        Raises InvalidRequest when the template refuses the messages or cannot render them.
        """
        variables = {"tools": None, "documents": None} | self.special_tokens | dict(extra or {})
        variables |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            return _bounded(self._template.generate(variables))
        except _RefusedError as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from None
        except Exception as error:  # a template's expressions raise whatever the messages lead them to
            raise InvalidRequest(
                f"the model's chat template cannot render these messages: {type(error).__name__}: {error}"
            ) from None


def _bounded(parts: Iterable[str]) -> str:
    """All of them, in one. A template that came from elsewhere may never end."""
    kept, size = [], 0
    for part in parts:
        size += len(part)
        if size > MAX_RENDERED_CHARS:
            raise _RefusedError(f"what it renders is over {MAX_RENDERED_CHARS} characters")
        kept.append(part)
    return "".join(kept)


class _RefusedError(jinja2.TemplateError):
    """Raised by a template itself."""


class _Environment(ImmutableSandboxedEnvironment):
    """Refuses products and powers that would fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                repeats = isinstance(many, str | bytes | list | tuple) and isinstance(times, int)
                if repeats and len(many) * times > MAX_RENDERED_CHARS:
                    raise SecurityError(f"a product of {len(many)} x {times} items")
        elif isinstance(left, int) and isinstance(right, int) and right * left.bit_length() > MAX_BITS:
            raise SecurityError(f"a power of {right}")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """``{% generation %}`` marks, for training, what the model wrote; its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012  # so declared in jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _raise(message: str) -> str:
    raise _RefusedError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """jinja2's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=default
    )


def _content(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _config(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise ModelLoadError(f"{file} is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}
