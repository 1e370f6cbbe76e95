from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from pilotfish_cloud import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    token = logs.request_id.set("")
    yield
    logs.request_id.reset(token)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "json")
    log = logging.getLogger("pilotfish_cloud.x")
    log.debug("not this")
    log.info("hello\n%s", "wörld")
    logs.name_request("abc-1")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {key: first[key] for key in ("level", "logger", "message")} == {
        "level": "info",
        "logger": "pilotfish_cloud.x",
        "message": "hello\nwörld",
    }
    assert "request_id" not in first
    assert first["time"].endswith("+00:00")
    assert second["request_id"] == "abc-1"
    assert "ValueError: broken" in second["exception"]


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("warning", "text")
    logging.getLogger("a").warning("before")
    logs.name_request("r-7")
    logging.getLogger("a").warning("within")
    assert capsys.readouterr().err.splitlines() == ["WARNING a: before", "WARNING a: within [r-7]"]


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", 'a"b', "a\nb", b"bytes", "ünïcode"])
def test_a_name_that_is_none_is_replaced(given: object) -> None:
    name = logs.name_request(given)
    assert name != given
    assert len(name) == 16
    assert logs.request_id.get() == name
    assert logs.name_request("trace/1:2.3_4-5=") == "trace/1:2.3_4-5="
