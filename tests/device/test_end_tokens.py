"""Where text ends that the device writes alone: at the verifier's end tokens, as far as they are known."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pilotfish.async_client import AsyncClient
from pilotfish.end_tokens import EndTokens
from pilotfish.result import Piece, Result
from pilotfish_core.drafts import Commit, FinishReason
from pilotfish_core.errors import Unavailable
from pilotfish_core.messages import Opened
from tests.device.test_offline import Writer
from tests.device.verifiers import END, TOKENIZER, ScriptedStream, ScriptedTransport, ids

(BANG,) = ids("!")  # an ordinary token, which the target was trained to end with
TEXT = (*ids("one"), END, *ids("two!rubbish"))


async def nobody(stream: ScriptedStream) -> AsyncIterator[Opened | Commit]:
    raise Unavailable("no route to host")
    yield


class Gone(ScriptedTransport):
    """It opens nothing, but ``said`` which tokens end an answer, before it went."""

    def __init__(self, said: tuple[str, tuple[int, ...]] | None) -> None:
        super().__init__(nobody)
        self.said = said
        self.asked = 0

    async def fetch_end_tokens(self, model: str) -> tuple[str, tuple[int, ...]]:
        self.asked += 1
        if self.said is None:
            raise Unavailable("no route to host")
        return self.said


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PILOTFISH_CACHE", str(tmp_path))
    return tmp_path


async def written_alone(transport: ScriptedTransport, **options: Any) -> Result:
    fields: dict[str, Any] = {"offline": "draft", "on_reconnect": "keep", "offline_after_s": 0.2}
    async with AsyncClient("scripted:1", draft=Writer(TEXT), tokenizer=TOKENIZER, **fields | options) as client:
        client._transport = transport
        stream = await client.generate("ab", max_tokens=len(TEXT), seed=1)
        pieces = [piece async for piece in stream]
        assert all(isinstance(piece, Piece) for piece in pieces)
        return await stream.result()


async def test_the_verifiers_end_it() -> None:
    result = await written_alone(Gone((TOKENIZER.hash, (BANG,))))
    assert result.text == "one<end>two"
    assert (result.finish_reason, result.stop) == (FinishReason.STOP, BANG)


async def test_those_of_the_draft_folder_do_where_the_verifier_was_never_asked() -> None:
    result = await written_alone(Gone(None))
    assert (result.text, result.stop) == ("one", END)


async def test_those_of_another_vocabulary_mean_nothing() -> None:
    assert (await written_alone(Gone(("0" * 64, (BANG,))))).stop == END


async def test_what_it_said_the_last_time_is_remembered(cache: Path) -> None:
    await written_alone(Gone((TOKENIZER.hash, (BANG,))))
    assert (await written_alone(Gone(None))).stop == BANG
    assert (await written_alone(Gone(None), model="another")).stop == END
    known = json.loads((cache / "end_tokens.json").read_text())
    (cache / "end_tokens.json").write_text(json.dumps({key: {"ids": "all"} for key in known}))
    assert (await written_alone(Gone(None))).stop == END
    (cache / "end_tokens.json").write_text("[")
    assert (await written_alone(Gone(None))).stop == END


async def test_it_is_asked_again_until_it_answers_and_then_no_more() -> None:
    transport = Gone(None)
    known = EndTokens(transport, "", TOKENIZER.hash)
    for said, ids_then in ((None, None), ((TOKENIZER.hash, (BANG,)), (BANG,)), (None, (BANG,))):
        transport.said = said
        known.learn()
        if known._task is not None:
            await known._task
        assert known.ids == ids_then
    assert transport.asked == 2


async def test_nobody_is_asked_who_does_not_write_alone() -> None:
    transport = Gone((TOKENIZER.hash, (BANG,)))
    with pytest.raises(Unavailable):
        await written_alone(transport, offline="wait")
    assert transport.asked == 0
