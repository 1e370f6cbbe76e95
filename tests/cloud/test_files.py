"""Which files are private."""

from __future__ import annotations

import pytest

from pilotfish_cloud.files import _open_to_others


@pytest.mark.parametrize(
    ("mode", "owner", "reader", "open_to_others"),
    [
        (0o100600, 1000, 1000, False),
        (0o100400, 1000, 1000, False),
        (0o100640, 1000, 1000, True),
        (0o100440, 0, 10001, False),  # a secret of Kubernetes: root's, for our group
        (0o100640, 0, 10001, False),
        (0o100460, 0, 10001, True),
        (0o100444, 0, 10001, True),
        (0o100640, 0, 0, True),  # root has no need of a group
        (0o100640, 1001, 1000, True),
    ],
)
def test_who_may_read_it(mode: int, owner: int, reader: int, open_to_others: bool) -> None:
    assert _open_to_others(mode, owner, reader) is open_to_others
