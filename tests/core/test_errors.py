from __future__ import annotations

import inspect

import grpc
import pytest

from pilotfish_core import errors
from pilotfish_core.errors import ERRORS_BY_KIND, STATUS_BY_KIND, LocalError, PilotfishError, error_of_kind

CLASSES = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, PilotfishError) and member is not PilotfishError
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_class_has_its_own_kind_and_a_status(kind: type[PilotfishError]) -> None:
    assert ERRORS_BY_KIND[kind.kind] is kind
    assert kind.__name__ in (errors.__doc__ or "")
    if not issubclass(kind, LocalError):
        status, http = STATUS_BY_KIND[kind.kind]
        assert grpc.StatusCode[status]
        assert 400 <= http < 600


def test_an_error_survives_the_wire() -> None:
    error = error_of_kind("overloaded", "busy", retry_after_s=2.0)
    assert isinstance(error, errors.Overloaded)
    assert (str(error), error.retry_after_s, error.retryable) == ("busy", 2.0, True)


def test_an_error_of_a_newer_peer_is_still_ours() -> None:
    error = error_of_kind("too_windy", "come back later")
    assert type(error) is PilotfishError
    assert not error.retryable
