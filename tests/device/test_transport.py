from __future__ import annotations

import pytest

from pilotfish.transport import Address, parse_addresses
from pilotfish_core.errors import InvalidParameter


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5000", Address("127.0.0.1", 5000)),
        ("grpc://host:1", Address("host", 1)),
        ("grpcs://host:443/", Address("host", 443, secure=True)),
        ("host", Address("host", 50051)),
        ("grpc://[::1]:7", Address("[::1]", 7)),
        ("[::1]", Address("[::1]", 50051)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["http://x:1", "host:", "host:0", "host:70000", "host:x", ":5", "", "host:١"])
def test_a_bad_address_is_named(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_addresses(text)


def test_a_list_of_addresses() -> None:
    assert parse_addresses("a:1,b:2") == parse_addresses(["a:1", "b:2"]) == (Address("a", 1), Address("b", 2))
