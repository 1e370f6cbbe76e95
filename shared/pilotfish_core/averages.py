"""The average that all estimates are made of."""

from __future__ import annotations


class Average:
    """An exponentially weighted average; the first observations count evenly, so that it has no bias to a start."""

    def __init__(self, gain: float) -> None:
        self._gain = gain
        self.count = 0
        self.value: float | None = None

    def observe(self, value: float) -> None:
        """Take in one observation."""
        self.count += 1
        if self.value is None:
            self.value = value
        else:
            self.value += max(self._gain, 1 / self.count) * (value - self.value)

    def fade(self, towards: float, share: float) -> None:
        """Nothing was observed for a while: what is known counts less."""
        if self.value is not None:
            self.value += share * (towards - self.value)

    def or_else(self, default: float) -> float:
        """The average, or ``default`` before the first observation."""
        return default if self.value is None else self.value
