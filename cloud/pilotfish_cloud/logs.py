"""Logging of the server: lines for people or JSON objects, each with the request that it is about."""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import re
import secrets
from typing import Any, Final

REQUEST_ID_METADATA: Final = "x-request-id"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


def name_request(given: object) -> str:
    """Make ``given`` the name of the request of this task, or a new one where a caller gave none that is harmless."""
    name = given if isinstance(given, str) and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
    request_id.set(name)
    return name


class _Naming(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class TextFormatter(logging.Formatter):
    """``LEVEL logger: message [request]``."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        name = getattr(record, "request_id", "")
        text = super().format(record)
        first, newline, rest = text.partition("\n")
        return f"{first} [{name}]{newline}{rest}" if name else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and request_id and exception where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        name = getattr(record, "request_id", "")
        if name:
            line["request_id"] = name
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(level: str, form: str) -> None:
    """Send everything that is logged to standard error, in one form. Replaces what was set up before."""
    handler = logging.StreamHandler()
    handler.addFilter(_Naming())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
