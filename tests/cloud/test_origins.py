from __future__ import annotations

import pytest

from pilotfish_cloud.origins import Origins


@pytest.mark.parametrize(
    ("origin", "host", "secure", "admitted"),
    [
        (None, "h:8000", False, True),
        ("http://h:8000", "h:8000", False, True),
        ("http://H:8000", "h:8000", False, True),
        ("https://h", "h", False, True),  # a proxy took TLS off
        ("https://h", "h", True, True),
        ("http://h", "h", True, False),  # whoever is on the link may have written that page
        ("http://h:8001", "h:8000", False, False),
        ("http://h", "h:8000", False, False),
        ("http://evil", "h", False, False),
        ("http://h.evil", "h", False, False),
        ("ftp://h", "h", False, False),
        ("null", "h", False, False),
        ("null", "null", False, False),
        ("h", "h", False, False),
        ("", "", False, False),
        ("http://h", None, False, False),
    ],
)
def test_a_page_of_our_own(origin: str | None, host: str | None, secure: bool, admitted: bool) -> None:
    assert Origins().admits(origin, host, secure=secure) is admitted


def test_pages_that_the_operator_names() -> None:
    origins = Origins(["https://app.example", "capacitor://localhost"])
    for origin in origins.allowed:
        assert origins.admits(origin, "h", secure=True)
    assert not origins.admits("https://other.example", "h", secure=True)
    assert Origins(["*"]).admits("https://other.example", "h", secure=True)
    assert Origins(["*"]).admits("null", "h", secure=True)
