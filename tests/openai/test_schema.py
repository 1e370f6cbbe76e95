"""Bodies of requests: what is taken over, what is refused and how it is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pilotfish_core.errors import InvalidParameter, InvalidRequest, PilotfishError, UnsupportedParameter
from pilotfish_openai.completions import prompts_of
from pilotfish_openai.conversation import text_of
from pilotfish_openai.schema import (
    IGNORED_HEADER,
    ChatBody,
    CompletionBody,
    RequestBody,
    parse,
    path_of,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**fields: Any) -> CompletionBody:
    return parse(CompletionBody, json.dumps({"model": "m", "prompt": "p"} | fields).encode())


def chat(**fields: Any) -> ChatBody:
    return parse(ChatBody, json.dumps({"model": "m", "messages": MESSAGES} | fields).encode())


def refused(kind: type[RequestBody], data: bytes) -> PilotfishError:
    with pytest.raises(PilotfishError) as caught:
        parse(kind, data)
    return caught.value


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"prompt": "a", "n": 1e}', b"[" * 5000])
def test_what_is_no_json_is_said_to_be_none(data: bytes) -> None:
    assert "is not JSON" in str(refused(CompletionBody, data))


@pytest.mark.parametrize("data", [b"[]", b'"text"', b"1", b"null"])
def test_json_that_is_no_object(data: bytes) -> None:
    assert "not an object" in str(refused(CompletionBody, data))


@pytest.mark.parametrize(
    ("kind", "fields", "parameter"),
    [
        (CompletionBody, {}, "prompt"),
        (CompletionBody, {"prompt": "p", "model": 3}, "model"),
        (CompletionBody, {"prompt": "p", "stream": "yes"}, "stream"),
        (CompletionBody, {"prompt": "p", "n": 0}, "n"),
        (CompletionBody, {"prompt": "p", "n": 129}, "n"),
        (CompletionBody, {"prompt": "p", "n": True}, "n"),
        (CompletionBody, {"prompt": "p", "logprobs": True}, "logprobs"),
        (CompletionBody, {"prompt": "p", "stream_options": 1}, "stream_options"),
        (CompletionBody, {"prompt": "p", "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (ChatBody, {}, "messages"),
        (ChatBody, {"messages": []}, "messages"),
        (ChatBody, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (ChatBody, {"messages": ["hi"]}, "messages[0]"),
        (ChatBody, {"messages": MESSAGES, "logprobs": 3}, "logprobs"),
    ],
)
def test_wrong_fields_are_named(kind: type[RequestBody], fields: dict[str, Any], parameter: str) -> None:
    error = refused(kind, json.dumps(fields).encode())
    assert isinstance(error, InvalidParameter)
    assert error.parameter == parameter
    assert str(error).startswith(parameter)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("top_p", 0),
        ("top_k", 1.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("logit_bias", {"x": 1}),
        ("seed", 2**64),
        ("seed", "7"),
        ("min_tokens", 99),
        ("ignore_eos", 1),
        ("stop", 5),
        ("stop", [""]),
        ("stop_token_ids", [-1]),
    ],
)
def test_sampling_parameters_are_checked_by_the_core(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter) as caught:
        completion(**{name: value}).sampling(max_tokens=16, logprobs=None)
    assert caught.value.parameter == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "auto"),
        ("functions", [{}]),
        ("function_call", "auto"),
        ("response_format", {"type": "json_object"}),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("suffix", "x"),
        ("best_of", 2),
        ("guided_json", {}),
        ("prompt_logprobs", 1),
        ("chat_template", "x"),
        ("use_beam_search", True),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(name: str, value: object) -> None:
    for body in (completion, chat):
        with pytest.raises(UnsupportedParameter) as caught:
            body(**{name: value})
        assert caught.value.parameter == name
        assert body(**{name: None}).ignored == []


def test_values_that_ask_for_nothing_are_no_matter() -> None:
    neutral = {"tools": [], "response_format": {"type": "text"}, "best_of": 1, "suffix": "", "modalities": ["text"]}
    assert chat(**neutral).ignored == []


def test_unknown_fields_are_ignored_and_named() -> None:
    body = completion(user="someone", metadata={}, **{"x-y\r\nset-cookie: a": 1})
    assert body.ignored == ["metadata", "user", "x-y\r\nset-cookie: a"]
    assert body.ignored_header == {IGNORED_HEADER: "metadata, user"}
    assert completion().ignored_header == {}
    many = completion(**{f"field_{index}": 1 for index in range(100)})
    assert len(many.ignored_header[IGNORED_HEADER]) < 1000


def test_what_becomes_of_sampling_parameters() -> None:
    params = completion(
        temperature=0.5, top_k=-1, stop="end", logit_bias={"7": 3}, seed=-1, stop_token_ids=[5], min_tokens=2
    ).sampling(max_tokens=16, logprobs=3)
    assert (params.temperature, params.top_k, params.stop, params.logprobs) == (0.5, 0, ("end",), 3)
    assert params.logit_bias == ((7, 3.0),)
    assert params.seed == 2**64 - 1
    assert params.stop_token_ids == (5,)
    drawn = {completion().sampling(max_tokens=1, logprobs=None).seed for _ in range(8)}
    assert len(drawn) == 8
    assert max(drawn) < 2**53  # exact for readers whose numbers are floating


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("text", ["text"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1], [2, 3]], [(1,), (2, 3)]),
    ],
)
def test_prompts(value: object, prompts: list[object]) -> None:
    assert prompts_of(value) == prompts


@pytest.mark.parametrize("value", [None, 5, [], [[]], ["a", 1], [1, "a"], [True], [[1], "a"], {"a": 1}, [1.5]])
def test_what_is_no_prompt(value: object) -> None:
    with pytest.raises(InvalidParameter, match=r"^prompt is "):
        prompts_of(value)


def test_text_of_messages() -> None:
    assert text_of("hi", "content") == "hi"
    assert text_of([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "content") == "a\nb"
    with pytest.raises(UnsupportedParameter, match=r"^m\[1\].type is not supported; only text is, not 'image_url'"):
        text_of([{"type": "text", "text": "a"}, {"type": "image_url"}], "m")
    for wrong in (None, 5, [5], [{"type": "text"}], {"type": "text"}):
        with pytest.raises(InvalidRequest):
            text_of(wrong, "content")


def test_paths() -> None:
    assert path_of(("messages", 0, "role")) == "messages[0].role"
    assert path_of(("n",)) == "n"
