from __future__ import annotations

from collections.abc import AsyncIterator

from pilotfish.routes import MAX_KNOWN, Routes
from pilotfish_core.drafts import Commit
from pilotfish_core.errors import Unavailable
from pilotfish_core.messages import ROUTE_KEY, Opened
from tests.device.test_driver import AT, commits
from tests.device.verifiers import LENGTH, ScriptedStream, ScriptedTransport, generation, opened, run


def test_a_client_has_a_route_of_its_own_until_it_is_told() -> None:
    routes = Routes()
    first = routes.of((1, 2), 0)
    assert ROUTE_KEY.fullmatch(first)
    assert routes.of((3,), 0) == first
    assert len({first, *(routes.of((1, 2), 1) for _ in range(5))}) == 6
    routes.learn((1, 2), ("a", "b"))
    assert [routes.of((1, 2), failures) for failures in (0, 1)] == ["a", "b"]
    assert routes.of((1, 2), 2) != routes.of((1, 2), 2)
    assert routes.of((3,), 0) == first
    routes.learn((1, 2), ())
    assert routes.of((1, 2), 0) == "a"


def test_what_it_remembers_is_bounded() -> None:
    routes = Routes()
    for number in range(MAX_KNOWN + 10):
        routes.learn((number,), (f"r{number}",))
    assert len(routes._told) == MAX_KNOWN
    assert routes.of((MAX_KNOWN + 9,), 0) == f"r{MAX_KNOWN + 9}"
    assert not routes.of((0,), 0).startswith("r")


async def test_a_retry_goes_elsewhere() -> None:
    async def breaks(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        yield opened(routes=("a", "b"))
        raise Unavailable("gone")

    async def drains(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        yield opened(routes=("a", "b"))
        error = Unavailable("draining")
        error.route = "c"
        raise error

    async def answers(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
        yield opened(routes=("a", "b"))
        yield commits("x", AT, LENGTH)

    transport = ScriptedTransport(breaks, drains, answers)
    routes = Routes()
    await run(generation(), transport, routes=routes)
    assert transport.routes[1:] == ["b", "c"]
    assert transport.routes[0] not in ("a", "b", "c")
    await run(generation(), ScriptedTransport(answers), routes=routes)
    again = ScriptedTransport(answers)
    await run(generation(), again, routes=routes)
    assert again.routes == ["a"]
