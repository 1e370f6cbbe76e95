from __future__ import annotations

from typing import Any

import pytest

from pilotfish_core.errors import InvalidParameter, UnsupportedParameter
from pilotfish_core.parameters import SamplingParams


def test_users_spellings() -> None:
    params = SamplingParams.from_mapping(
        {"stop": "\n\n", "logit_bias": {"5": -100}, "top_k": -1, "seed": None, "max_tokens": 5, "logprobs": None}
    )
    assert params.stop == ("\n\n",)
    assert params.logit_bias == ((5, -100.0),)
    assert params.top_k == 0
    assert params.max_tokens == 5


def test_a_missing_seed_is_random_and_reported() -> None:
    assert SamplingParams.from_mapping({}).seed != SamplingParams.from_mapping({}).seed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", 1e-310),
        ("temperature", 10**400),
        ("repetition_penalty", 1e-308),
        pytest.param("seed", 10**5000, id="huge"),
        ("logit_bias", {float("inf"): 1}),
        ("logit_bias", {2**32: 1}),
        ("stop", ["a" * 100_000]),
        ("stop", ["\ud800"]),
        ("stop_token_ids", [2**32]),
        ("stop_token_ids", range(100_000)),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("seed", -1),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("min_tokens", 300),
        ("ignore_eos", 1),
        ("logprobs", 21),
        ("stop", [""]),
        ("stop", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 3),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {1: 101}),
        ("logit_bias", 7),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameter, match=f"{name} is .*; expected") as caught:
        SamplingParams.from_mapping({name: value})
    assert len(str(caught.value)) < 400


def test_an_unknown_parameter_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedParameter, match="beam_width"):
        SamplingParams.from_mapping({"beam_width": 3})
