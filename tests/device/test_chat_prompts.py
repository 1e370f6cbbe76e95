"""Messages to prompts: templates of verifiers, honest and other ones, and of folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotfish.addresses import Address
from pilotfish.chat_prompts import MAX_TEMPLATE_CHARS, ChatPrompts
from pilotfish.client import AsyncClient
from pilotfish.transport import Transport
from pilotfish_core.errors import InvalidParameter, InvalidRequest, ModelLoadError, PilotfishError
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from tests.device.test_transport import StallingVerifier, stalling
from tests.device.verifiers import TOKENIZER, ListDrafter, ids

TALK = [{"role": "user", "content": "hi"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{{ '>' * add_generation_prompt }}"
)


class Sends(Transport):
    """A verifier's answers, one after the other."""

    def __init__(self, *sources: str) -> None:
        super().__init__((Address("scripted", 1),))
        self.sources = list(sources)
        self.asked = 0

    async def fetch_chat_template(self, model: str) -> pb.ChatTemplate:
        self.asked += 1
        return pb.ChatTemplate(source=self.sources.pop(0), special_tokens={"bos_token": "<s>"})


def prompts(*sources: str) -> ChatPrompts:
    return ChatPrompts(Sends(*sources), "", [])


async def test_the_verifiers_template_makes_the_prompt_and_is_fetched_once() -> None:
    transport = Sends(TEMPLATE)
    chat = ChatPrompts(transport, "", [])
    assert await chat.prompt(TALK, TOKENIZER) == ids("<s>user:hi;>")
    assert await chat.prompt(TALK, TOKENIZER, add_generation_prompt=False) == ids("<s>user:hi;")
    assert transport.asked == 1


async def test_what_failed_is_fetched_again() -> None:
    chat = prompts("{% if %}", TEMPLATE)
    with pytest.raises(ModelLoadError, match="the verifier's chat template is not a usable chat template"):
        await chat.prompt(TALK, TOKENIZER)
    assert await chat.prompt(TALK, TOKENIZER)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x" * (MAX_TEMPLATE_CHARS + 1), "is over"),
        ("{{ ''.__class__.__mro__ }}", "cannot render"),
        ("{{ raise_exception('no') }}", "refuses these messages: no"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endfor %}", "is over"),
        ("{{ range(10**9) | list }}", "cannot render"),
        ("{% include 'x' %}", "cannot render"),
        ("", "has no chat template"),
    ],
)
async def test_templates_of_a_hostile_verifier(source: str, message: str) -> None:
    with pytest.raises(PilotfishError, match=message):
        await prompts(source).prompt(TALK, TOKENIZER)


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([], "messages is []"),
        ("hi", "messages is 'hi'"),
        ([5], r"messages\[0\] is 5"),
        ([*TALK, {"role": "king", "content": "x"}], r"messages\[1\]\.role is 'king'"),
        ([{"role": "user"}], r"messages\[0\]\.content is None"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\]\.content\[0\]\.type"),
        ([{"role": "user", "content": "\ud800"}], "not valid Unicode"),
    ],
)
async def test_messages_that_are_none(messages: Any, place: str) -> None:
    with pytest.raises(InvalidRequest, match=place.replace("[]", r"\[\]")):
        await prompts(TEMPLATE).prompt(messages, TOKENIZER)


async def test_without_a_verifier_the_folders_template_is_used(tmp_path: Path) -> None:
    config = {"chat_template": TEMPLATE, "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.to_json())
    for given in (tmp_path, tmp_path / "tokenizer.json"):
        async with AsyncClient(None, draft=ListDrafter(ids("x")), tokenizer=given, cloud="never") as client:
            assert await client.count_tokens(TALK) == len("<s>user:hi;>")
            stream = await client.chat(TALK, max_tokens=3)
            assert stream.generation.prompt == ids("<s>user:hi;>")
            assert (await stream.result()).text == "xxx"
            await client.prewarm(TALK)
            with pytest.raises(InvalidRequest, match="there is no verifier to ask"):
                await client.describe()


async def test_counting_and_bad_parameters() -> None:
    async with AsyncClient("scripted:1", draft=None, tokenizer=TOKENIZER) as client:
        assert await client.count_tokens("abc") == await client.count_tokens(ids("abc")) == 3
        with pytest.raises(InvalidParameter, match="temperature"):
            await client.chat(TALK, temperature=-1)
        with pytest.raises(InvalidParameter, match="prompt is -1"):
            await client.count_tokens([-1])


async def test_an_older_verifier_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import grpc

    async def unknown(self: Any, request: pb.FetchChatTemplateRequest, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    monkeypatch.setattr(StallingVerifier, "FetchChatTemplate", unknown)
    async with stalling() as transport:
        assert await ChatPrompts(transport, "", []).template() is None


async def test_a_template_over_the_wire_that_is_too_long() -> None:
    async with stalling() as transport:
        with pytest.raises(ModelLoadError, match="is over"):
            await ChatPrompts(transport, "", []).template()
