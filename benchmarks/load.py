"""An engine in a process of its own under many generations at once, for benchmarks that leave the network out.

The caller's loop plays the devices: it hears every commit and may answer with a draft run. Verifier and devices are
pinned to a processor each where there are two.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pilotfish.bench.pinning import pinned
from pilotfish.bench.prompts import PROMPTS
from pilotfish_cloud.config import ServerConfig
from pilotfish_cloud.engine.interface import CommitEvent, EngineEvent, FailedEvent, OpenedEvent, OpenRequest
from pilotfish_cloud.engine.process import EngineProcess
from pilotfish_core.drafts import Commit, DraftRun
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.tokenizer import Tokenizer

PATIENCE_S: Final = 300.0  # for the next event
Tokens = tuple[int, ...]


class Load:
    """Generations on one engine, in the order of its events. Not for threads."""

    def __init__(self, engine: EngineProcess) -> None:
        self.engine = engine
        self._events: queue.SimpleQueue[Sequence[EngineEvent]] = queue.SimpleQueue()
        self._keys = (str(number) for number in itertools.count())
        self.running: set[str] = set()
        engine.start(self._events.put)

    def open(self, prompt: Sequence[int], *, salt: bytes = b"", tenant: str = "", **params: Any) -> str:
        """Begin a generation; returns its key."""
        key = next(self._keys)
        sampling = SamplingParams.from_mapping({"temperature": 0.8, "seed": int(key), "ignore_eos": True} | params)
        self.engine.open(OpenRequest(key=key, prompt=tuple(prompt), params=sampling, cache_salt=salt, tenant=tenant))
        self.running.add(key)
        return key

    def abort(self, key: str) -> None:
        """End a generation."""
        self.engine.abort(key)
        self.running.discard(key)

    def events(self) -> Iterator[OpenedEvent | CommitEvent]:
        """What happens to running generations, until none runs. Raises what one of them failed with."""
        while self.running:
            for event in self._events.get(timeout=PATIENCE_S):
                if event.key not in self.running:
                    continue
                if isinstance(event, FailedEvent):
                    raise event.error
                if isinstance(event, CommitEvent) and event.commit.finish is not None:
                    self.running.discard(event.key)
                if isinstance(event, OpenedEvent | CommitEvent):
                    if isinstance(event, CommitEvent):
                        self.engine.acknowledge(event.key, event.commit.end)
                    yield event

    def answers(self, keys: Sequence[str]) -> dict[str, Tokens]:
        """Run to the end; the output of each."""
        found: dict[str, list[int]] = {key: [] for key in keys}
        for event in self.events():
            if isinstance(event, CommitEvent) and event.key in found:
                found[event.key].extend(event.commit.tokens)
        return {key: tuple(tokens) for key, tokens in found.items()}


@contextlib.contextmanager
def loaded(model: Path, **options: Any) -> Iterator[Load]:
    """An engine of ``model`` on the first processor, this process on the last."""
    config = ServerConfig(model=model, served_model_name="target", **options)
    with pinned() as pins:
        with pins.starting_verifier():
            engine = EngineProcess.load(config)
        try:
            yield Load(engine)
            engine.check_integrity()
        finally:
            engine.close()


def prompts(tokenizer: Tokenizer, count: int) -> list[Tokens]:
    """As many different beginnings of Python files."""
    texts = (f"# part {number}\n{PROMPTS[number % len(PROMPTS)]}" for number in range(count))
    return [tuple(tokenizer.encode(text)) for text in texts]


class Oracle:
    """Drafts the target's known output after each commit, each token right with probability ``acceptance``."""

    def __init__(self, acceptance: float, vocabulary_size: int, *, length: int = 8) -> None:
        self._acceptance, self._vocabulary, self._length = acceptance, vocabulary_size, length
        self._random = random.Random(1)
        self._branches: dict[str, int] = {}

    def answer(self, engine: EngineProcess, key: str, commit: Commit, prompt_len: int, truth: Tokens) -> None:
        """A new branch from the end of ``commit`` on."""
        begin = commit.end - prompt_len
        tokens = tuple(self._token(right) for right in truth[begin : begin + self._length])
        if tokens:
            branch = self._branches[key] = self._branches.get(key, -1) + 1
            engine.push(key, DraftRun(branch, commit.end, tokens))

    def _token(self, right: int) -> int:
        if self._random.random() < self._acceptance:
            return right
        return (right + 1 + self._random.randrange(self._vocabulary - 1)) % self._vocabulary


Answer = Callable[[EngineProcess, str, Commit, int, Tokens], None]
