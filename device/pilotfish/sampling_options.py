"""The sampling options of the commands that generate, and the parameters that they give."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any, Final

from pilotfish_core.errors import InvalidParameter
from pilotfish_core.parameters import SamplingParams

_NUMBERS: Final = {
    "max_tokens": int,
    "min_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
}
# Fields of SamplingParams by their option's name; an option that was not given is not in the namespace.
_SAMPLING: Final = {name: name for name in _NUMBERS} | {
    "logit_bias": "logit_bias",
    "seed": "seed",
    "stop": "stop",
    "stop_token_id": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "logprobs": "logprobs",
}


def add_sampling_options(group: Any, *, logprobs: bool = True, **defaults: Any) -> None:
    """``defaults``: those shown where they are not the fields' own."""
    absent: Any = argparse.SUPPRESS
    shown = {field.name: field.default for field in dataclasses.fields(SamplingParams)} | defaults
    for name, kind in _NUMBERS.items():
        option, text = f"--{name.replace('_', '-')}", f"(default: {shown[name]})"
        group.add_argument(option, type=kind, default=absent, help=text)
    group.add_argument(
        "--logit-bias", metavar="JSON", default=absent, help="mapping of token id to bias, such as '{\"42\": -100}'"
    )
    group.add_argument("--seed", type=int, default=absent, help="(default: a random one, reported)")
    group.add_argument("--stop", action="append", default=absent, metavar="TEXT", help="stop string; repeatable")
    group.add_argument("--stop-token-id", action="append", type=int, default=absent, metavar="ID", help="repeatable")
    group.add_argument("--ignore-eos", action="store_true", default=absent, help="go on after an end token")
    if logprobs:
        text = "log probabilities of the K best tokens (with --json)"
        group.add_argument("--logprobs", type=int, default=absent, metavar="K", help=text)


def given_options(arguments: argparse.Namespace) -> list[str]:
    """Those that were given, as they are written."""
    return [f"--{name.replace('_', '-')}" for name in _SAMPLING if hasattr(arguments, name)]


def params_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of SamplingParams that were given. Raises InvalidParameter."""
    params = {field: getattr(arguments, name) for name, field in _SAMPLING.items() if hasattr(arguments, name)}
    if "logit_bias" in params:
        try:
            params["logit_bias"] = json.loads(arguments.logit_bias)
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(f"--logit-bias is not JSON: {error}") from None
        if not isinstance(params["logit_bias"], dict):
            raise InvalidParameter.of("--logit-bias", arguments.logit_bias, "a JSON object of token id to bias")
    return params
