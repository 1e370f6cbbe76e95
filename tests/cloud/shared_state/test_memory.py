from __future__ import annotations

import pytest

from pilotfish_cloud.shared_state.interface import SharedState
from pilotfish_cloud.shared_state.memory import MemoryState
from tests.cloud.shared_state.contract import StateContract


class TestMemoryState(StateContract):
    @pytest.fixture
    def state(self) -> SharedState:
        return MemoryState()
