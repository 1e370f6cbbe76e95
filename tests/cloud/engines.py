"""A listener that tests can wait on, and how they talk to an embedded engine. No test sleeps."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pilotfish_cloud.engine.engine import EmbeddedEngine
from pilotfish_cloud.engine.interface import CommitEvent, Engine, EngineEvent, FailedEvent, OpenedEvent, OpenRequest
from pilotfish_core.drafts import Commit, DraftRun, Finish
from pilotfish_core.errors import PilotfishError
from pilotfish_core.parameters import SamplingParams

PATIENCE_S = 60.0


class Ear:
    """Collects events by key; ``on_commit`` runs in the engine's thread, before its next step."""

    def __init__(self) -> None:
        self.commits: dict[str, list[Commit]] = defaultdict(list)
        self.opened: dict[str, int] = {}
        self.errors: dict[str, PilotfishError] = {}
        self.on_commit: Callable[[str, Commit], None] = lambda key, commit: None
        self._changed = threading.Condition()

    def __call__(self, events: Sequence[EngineEvent]) -> None:
        with self._changed:
            for event in events:
                match event:
                    case OpenedEvent(key, cached):
                        assert key not in self.opened
                        self.opened[key] = cached
                    case CommitEvent(key, commit):
                        assert key in self.opened
                        assert not self.ended(key)
                        self.commits[key].append(commit)
                    case FailedEvent(key, error):
                        assert not self.ended(key)
                        self.errors[key] = error
            self._changed.notify_all()
        for event in events:
            if isinstance(event, CommitEvent):
                self.on_commit(event.key, event.commit)

    def ended(self, key: str) -> bool:
        return key in self.errors or self.finish(key) is not None

    def finish(self, key: str) -> Finish | None:
        return self.commits[key][-1].finish if self.commits[key] else None

    def tokens(self, key: str) -> list[int]:
        return [token for commit in self.commits[key] for token in commit.tokens]

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), "the engine did not get there"

    def wait_end(self, *keys: str) -> None:
        self.wait(lambda: all(self.ended(key) for key in keys))


@contextmanager
def running(engine: EmbeddedEngine) -> Iterator[Ear]:
    """Starts the engine, closes it, and checks that nothing leaked."""
    ear = Ear()
    engine.start(ear)
    try:
        yield ear
    finally:
        engine.close()
    engine.check_integrity()
    assert engine.scheduler.blocks.num_held == 0


def drafting(engine: Engine, ear: Ear, key: str, prompt_len: int, source: Sequence[int], length: int) -> None:
    """After each commit of ``key``, draft the next ``length`` tokens of ``source``."""
    branch = 0

    def draft(committed_key: str, commit: Commit) -> None:
        nonlocal branch
        if committed_key != key or commit.finish is not None:
            return
        begin = commit.end - prompt_len
        tokens = tuple(source[begin : begin + length])
        if tokens:
            branch += 1
            engine.push(key, DraftRun(branch, commit.end, tokens))

    others = ear.on_commit

    def both(committed_key: str, commit: Commit) -> None:
        others(committed_key, commit)
        draft(committed_key, commit)

    ear.on_commit = both


def request(
    key: str, prompt: Sequence[int], *, output: Sequence[int] = (), salt: bytes = b"", **params: object
) -> OpenRequest:
    return OpenRequest(
        key=key,
        prompt=tuple(prompt),
        output=tuple(output),
        params=SamplingParams.from_mapping({"temperature": 0, "ignore_eos": True} | params),
        cache_salt=salt,
    )
