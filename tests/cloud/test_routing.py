from __future__ import annotations

from pilotfish_cloud.routing import BEGINNING, ROUTES, Routing
from pilotfish_core.messages import ROUTE_KEY


def test_what_shares_a_beginning_shares_its_routes() -> None:
    routing = Routing(b"k" * 32)
    prompt = tuple(range(BEGINNING))
    routes = routing.of("a", prompt)
    assert len(set(routes)) == ROUTES
    assert all(map(ROUTE_KEY.fullmatch, routes))
    assert routing.of("a", (*prompt, 7, 8)) == routes
    assert routing.of("a", prompt[:20]) == routing.of("a", prompt[:16])
    assert routing.of("a", prompt[:5]) != routing.of("a", prompt[:6])


def test_tenants_and_secrets_are_kept_apart() -> None:
    routing, other = Routing(b"k" * 32), Routing(b"l" * 32)
    assert not set(routing.of("a", (1, 2))) & set(routing.of("b", (1, 2)))
    assert not set(routing.of("a", (1, 2))) & set(other.of("a", (1, 2)))
    assert routing.of("\ud800", ())  # a name is any text
