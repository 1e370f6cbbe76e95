"""Verifiers that do what a test says, in place of sockets and a model; and a small tokenizer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, cast

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pilotfish.addresses import Address
from pilotfish.attempts import Calling
from pilotfish.driver import GenerationDriver
from pilotfish.generation import Generation
from pilotfish.result import Piece, Result
from pilotfish.transport import DeviceStream, Transport
from pilotfish_core.device_actions import DeviceConfig
from pilotfish_core.drafter import DraftContext, Drafter
from pilotfish_core.drafts import Commit, DraftRun, Finish, FinishReason
from pilotfish_core.errors import PilotfishError
from pilotfish_core.messages import Open, Opened
from pilotfish_core.modes import Mode
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.retry import RetryPolicy
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.wire import CloudFrameWriter, DeviceFrameReader

END = 256
QUICK = DeviceConfig(retry=RetryPolicy(base_s=0.001, cap_s=0.001))
LENGTH = Finish(FinishReason.LENGTH)
Script = Callable[["ScriptedStream"], AsyncIterator[Opened | Commit]]


def byte_tokenizer(end_text: str = "<end>", *, eos_token_ids: Sequence[int] = ()) -> Tokenizer:
    """A token per byte and one more, an ordinary one, which has text."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), end_text]
    inner = tokenizers.Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner.to_str().encode(), eos_token_ids=eos_token_ids)


TOKENIZER = byte_tokenizer(eos_token_ids=[END])
PROMPT = tuple(TOKENIZER.encode("ab"))


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text))


def opened(fingerprint: str = "pf-a", **changes: Any) -> Opened:
    fields = {"max_model_len": 10_000, "max_draft_tokens": 8, "max_unacknowledged": 512} | changes
    return Opened(model="m", fingerprint=fingerprint, **fields)


class ScriptedStream(DeviceStream):
    """A stream whose frames a script writes; it stays open after them until it is cancelled."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._reader = DeviceFrameReader()
        self._over = asyncio.Event()
        self.bytes_up = self.bytes_down = 0
        self.runs: list[DraftRun] = []
        self.steered = asyncio.Event()  # the device has changed its mode
        self.opening: Open

    def send(self, frame: pb.DeviceFrame) -> None:
        for message in self._reader.read(frame):
            if isinstance(message, Open):
                self.opening = message
            elif isinstance(message, DraftRun):
                self.runs.append(message)
            elif isinstance(message, Mode):
                self.steered.set()

    async def frames(self) -> AsyncIterator[pb.CloudFrame]:
        writer = CloudFrameWriter()
        async for message in self._script(self):
            yield writer.opened(message) if isinstance(message, Opened) else writer.commit(message)
        await self._over.wait()

    def close(self) -> None:
        self._over.set()

    def cancel(self) -> None:
        self._over.set()


class ScriptedTransport(Transport):
    """Opens one stream after the other, each with the next script; the last one is used again."""

    def __init__(self, *scripts: Script, addresses: int = 1) -> None:
        super().__init__((Address("scripted", 1),) * addresses)
        self._scripts = scripts
        self.streams: list[ScriptedStream] = []
        self.routes: list[str] = []

    def open(self, number: int, timeout_s: float | None = None, route: str = "") -> ScriptedStream:
        self.routes.append(route)
        self.streams.append(ScriptedStream(self._scripts[min(len(self.streams), len(self._scripts) - 1)]))
        return self.streams[-1]


class ListDrafter(Drafter):
    """Proposes the same tokens again and again."""

    def __init__(self, tokens: Sequence[Any] = (), *, tokenizer_hash: str | None = None) -> None:
        self.name = "list"
        self.tokenizer_hash = tokenizer_hash
        self.max_length = None
        self.tokens = list(tokens)
        self.asked = threading.Event()
        self.closed = False

    def open(self, params: SamplingParams, prompt_length: int) -> DraftContext:
        self.asked.set()
        return _ListContext(self.tokens)

    def close(self) -> None:
        self.closed = True


class _ListContext(DraftContext):
    def __init__(self, tokens: list[Any]) -> None:
        self._tokens = tokens
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def rewind(self, length: int) -> None:
        self._length = length

    def extend(self, tokens: Sequence[int]) -> None:
        self._length += len(tokens)

    def draft(self, count: int) -> list[int]:
        self._length += min(count, len(self._tokens))
        return self._tokens[:count]


def generation(**params: Any) -> Generation:
    sampling = SamplingParams.from_mapping({"max_tokens": 100, "seed": 1} | params)
    return Generation(prompt=PROMPT, params=sampling, tokenizer_hash=TOKENIZER.hash)


@contextlib.contextmanager
def driving(answer: Generation, transport: Transport, **options: Any) -> Iterator[GenerationDriver]:
    fields: dict[str, Any] = {"tokenizer": TOKENIZER, "drafter": None, "config": QUICK} | options
    names = {field.name for field in dataclasses.fields(Calling)} & fields.keys()
    calling = Calling(transport=transport, **{name: fields.pop(name) for name in names})
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        yield GenerationDriver(answer, calling=calling, executor=executor, **fields)


async def run(answer: Generation, transport: Transport, **options: Any) -> tuple[list[Piece], Result]:
    """To the end. Raises what ended it otherwise."""
    with driving(answer, transport, **options) as driver:
        async with asyncio.timeout(30):
            await driver.run()
    *pieces, outcome = [driver.pieces.get_nowait() for _ in range(driver.pieces.qsize())]
    if isinstance(outcome, PilotfishError):
        raise outcome
    return [piece for piece in pieces if isinstance(piece, Piece)], cast("Result", outcome)
