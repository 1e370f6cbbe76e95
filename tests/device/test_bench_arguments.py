"""What ``pilotfish bench`` refuses, each in one line before anything is started; prompts, drafts and turns."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pilotfish import cli
from pilotfish.bench.command import add_bench_parser
from pilotfish.bench.drafts import DraftChoice, DraftKind
from pilotfish.bench.plan import ARMS, Cell, cells_of, reference_of, rotated, turns
from pilotfish.bench.prompts import PROMPTS, WARM_UP, from_file
from pilotfish.bench.settings import STDOUT, Settings, settings_of
from pilotfish_core.errors import InvalidParameter, MissingExtra
from pilotfish_core.modes import Arm


def settings(*arguments: str, server: str = "h:1") -> Settings:
    parser = argparse.ArgumentParser()
    add_bench_parser(parser.add_subparsers())
    return settings_of(parser.parse_args(["bench", "--server", server, *arguments]))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--arms", "cloud,fast"], ["--arms is 'fast'", *map(str, ARMS)]),
        (["--arms", "device-only"], ["--arms is 'device-only'"]),
        (["--arms", ""], ["--arms is ''; expected arms between commas"]),
        (["--arms", "cloud,cloud"], ["--arms is 'cloud,cloud'", "each once"]),
        (["--rtt", "0,soon"], ["--rtt is 'soon'; expected a number of milliseconds"]),
        (["--rtt", "nan"], ["--rtt is 'nan'"]),
        (["--rtt=-5"], ["--rtt is '-5'"]),
        (["--rtt", ","], ["--rtt is ','", "0,20,100"]),
        (["--rtt", "20,20.0"], ["--rtt is '20,20.0'", "each once"]),
        (["--concurrency", "0"], ["--concurrency is '0'; expected an integer in [1, 1024]"]),
        (["--concurrency", "1.5"], ["--concurrency is '1.5'"]),
        (["--concurrency", "4", "--prompts", "3"], ["--concurrency is 4", "number of prompts, 3"]),
        (["--prompts", "0"], ["--prompts is '0'"]),
        (["--prompts", "1000"], ["--prompts is '1000'", f"[1, {len(PROMPTS)}]"]),
        (["--prompt-file", "nowhere"], ["--prompt-file nowhere cannot be read"]),
        (["--max-tokens", "0"], ["--max-tokens is '0'"]),
        (["--temperature", "hot"], ["--temperature is 'hot'"]),
        (["--temperature", "1e-20"], ["temperature is 1e-20"]),
        (["--seed=-1"], ["--seed is '-1'"]),
        (["--repeats", "0"], ["--repeats is '0'"]),
        (["--warmup=-1"], ["--warmup is '-1'"]),
        (["--window", "0"], ["--window is '0'"]),
        (["--timeout", "0"], ["--timeout is '0'"]),
        (["--draft", ""], ["--draft is ''", "oracle:ACCURACY,MS"]),
        (["--draft", "none"], ["--draft is 'none'", "device-lockstep, device-async"]),
        (["--draft", "oracle:0.5"], ["--draft is 'oracle:0.5'", "oracle:0.8,10"]),
        (["--draft", "oracle:1.5,1"], ["ACCURACY of --draft is '1.5'"]),
        (["--draft", "oracle:1,-1"], ["MS of --draft is '-1'"]),
        (["--draft", "slow:x"], ["MS of --draft is 'x'"]),
        (["--draft", "slow:5,"], ["--draft is 'slow:5,'"]),
        (["--draft", "slow:5"], ["--draft is 'slow:5'", "slow:MS,DIR"]),
        (["--jitter", "x"], ["--jitter is 'x'"]),
        (["--jitter", "21", "--rtt", "100,20"], ["--jitter is '21'", "20"]),
        (["--dtype", "bfloat16"], ["--dtype is 'bfloat16'", "--server local"]),
        (["--verifier-flags=--x"], ["--verifier-flags is '--x'", "--server local"]),
        (["--plot", "picture.svg"], ["--plot is 'picture.svg'", ".png"]),
        (["--plot", "/nowhere/p.png"], ["--plot /nowhere/p.png"]),
        (["--json", "/nowhere/f"], ["--json /nowhere/f"]),
        (["--server", "h:0"], ["server is 'h:0'"]),
        (["--server", "grpcs://h:1", "--rtt", "0,20"], ["--rtt is '20'", "TLS"]),
        (["--server", "grpcs://h:1", "--rtt", "0", "--rate", "1mbit"], ["TLS"]),
        (["--server", "local", "--dtype", "int8"], ["--dtype is 'int8'"]),
        (["--server", "local", "--verifier-flags", "'"], ['--verifier-flags is "\'"']),
        (["--reference", "r"], ["--reference is 'r'", "--server local"]),
        (["--work-dir", "w"], ["--work-dir is 'w'", "--server local"]),
        (["--no-cloud-draft-model"], ["--no-cloud-draft-model is 'given'", "--server local"]),
        (
            ["--server", "local", "--arms", "cloud,co-located-model", "--no-cloud-draft-model"],
            ["--arms is 'co-located-model'", "--no-cloud-draft-model"],
        ),
        (["--prompt-file", "/dev/zero"], ["--prompt-file /dev/zero cannot be read", "longer than"]),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *([] if "--server" in arguments else ["--server", "h:1"]), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("pilotfish: ")
    for part in parts:
        assert part in captured.err


def test_defaults() -> None:
    given = settings()
    assert given.local is None
    assert (given.draft.kind, len(given.prompts), given.sampling["ignore_eos"]) == (DraftKind.NGRAM, 8, True)
    assert given.cells == (Cell(0, 1), Cell(20, 1), Cell(100, 1))
    assert (given.json, given.link.direct(0), given.link.direct(20)) == (None, True, False)
    assert settings("--json").json == STDOUT
    assert settings("--concurrency", "1,12").prompts == PROMPTS[:12]


def test_a_verifier_of_ones_own() -> None:
    given = settings(server="local")
    assert given.local is not None
    assert given.local.flags == ("--dtype", "bfloat16", "--deterministic")
    assert not given.local.draft_model
    assert (given.draft.kind, given.draft.folder) == (DraftKind.MODEL, None)
    more = settings("--arms", "cloud,co-located", "--verifier-flags=--threads 2", server="local")
    assert more.local is not None
    assert more.local.flags[-2:] == ("--threads", "2")
    assert more.local.draft_model
    assert not more.device_drafts
    without = settings("--arms", "co-located", "--no-cloud-draft-model", server="local")
    assert without.local is not None
    assert not without.local.draft_model


def test_a_link_is_used_where_there_is_something_to_it() -> None:
    plain, jittery = settings().link, settings("--rtt", "5", "--jitter", "2").link
    assert plain.flags(20) == ["--rtt=20.000000ms", "--jitter=0.000000ms"]
    assert not jittery.direct(0)
    assert jittery.as_dict() == {"--jitter": "2ms"}
    slow = settings("--rate-up", "1mbit", "--loss", "0.01").link
    assert not slow.direct(0)
    assert slow.flags(0)[2:] == ["--rate-up=1mbit", "--loss=0.01"]
    assert settings("--rtt", "1", "--jitter", "2", "--distribution", "normal").link.jitter_ms == 2


@pytest.mark.parametrize(("module", "option"), [("matplotlib", "--plot"), ("pilotfish_sim", "--rtt")])
def test_what_is_not_installed_is_named(
    module: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == module else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    extra = {"matplotlib": "bench", "pilotfish_sim": "sim"}[module]
    with pytest.raises(MissingExtra, match=rf"'{module}': pip install 'pilotfish\[{extra}\]'"):
        settings("--plot", str(tmp_path / "p.png"), "--rtt", "0" if option == "--plot" else "5")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("ngram", DraftChoice(DraftKind.NGRAM)),
        ("junk", DraftChoice(DraftKind.JUNK)),
        ("none", DraftChoice(DraftKind.NONE)),
        ("some/folder", DraftChoice(DraftKind.MODEL, "some/folder")),
        ("oracle:0.8,10", DraftChoice(DraftKind.ORACLE, accuracy=0.8, pace_s=0.01)),
        ("slow:30", DraftChoice(DraftKind.MODEL, pace_s=0.03)),
        ("slow:30,a,b", DraftChoice(DraftKind.MODEL, "a,b", pace_s=0.03)),
        ("./junk", DraftChoice(DraftKind.MODEL, "./junk")),
    ],
)
def test_drafts(text: str, choice: DraftChoice) -> None:
    assert DraftChoice.parse(text) == choice


def test_drafters_that_need_the_target() -> None:
    assert DraftChoice.parse("oracle:0.8,10").load() is None
    oracle = DraftChoice.parse("oracle:0.8,10").make(50, [(1, 2, 3)], seed=4)
    assert oracle is not None
    assert oracle.name == "oracle-0.8-10ms"
    junk = DraftChoice.parse("junk").make(50, [], seed=4)
    assert junk is not None
    assert junk.name == "junk"
    ngram = DraftChoice.parse("ngram")
    loaded = ngram.load()
    assert loaded is not None
    assert loaded.name == "ngram"
    assert ngram.make(50, [], seed=4) is None
    assert DraftChoice.parse("none").load() is DraftChoice.parse("none").make(50, [], 4) is None


def test_our_prompts_differ_from_each_other_and_the_warm_up() -> None:
    assert len(PROMPTS) >= 16
    assert len({*PROMPTS, WARM_UP}) == len(PROMPTS) + 1
    assert all(prompt.isascii() for prompt in PROMPTS)


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        (json.dumps(["a\n---\nb", "ü"]), ("a\n---\nb", "ü")),
        ("def f():\n---\nclass A:\n    x\n", ("def f():\n", "class A:\n    x\n")),
        ("one\n---\n", ("one\n",)),
        ("one\n---  \ntwo", ("one\n", "two")),
        ("one --- two\n----\n", ("one --- two\n----\n",)),
        ("[x for x in y]\n", ("[x for x in y]\n",)),
        ("42", ("42",)),
    ],
)
def test_a_file_of_prompts(text: str, prompts: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text(text, encoding="utf-8")
    assert from_file(str(file)) == prompts
    assert settings("--prompt-file", str(file)).prompts == prompts
    assert settings("--prompt-file", str(file), "--prompts", "1").prompts == prompts[:1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "prompt 1 of"),
        (b"a\n---\n \n---\nb", "prompt 2 of"),
        (b'["a", 3]', "a JSON list of strings"),
        (b"[]", "a JSON list of strings"),
        (b'["a", ""]', "prompt 2 of"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_of_something_else(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_bytes(data)
    with pytest.raises(InvalidParameter, match=message):
        from_file(str(file))


def test_every_arm_begins_as_often_as_the_others() -> None:
    arms = (Arm.CLOUD, Arm.LOCKSTEP, Arm.ASYNC)
    plan = list(turns(arms, prompts=6, repeats=2))
    assert [(turn.repeat, turn.prompt) for turn in plan] == [(r, p) for r in range(2) for p in range(6)]
    assert all(sorted(turn.arms) == sorted(arms) for turn in plan)
    assert set(Counter(turn.arms[0] for turn in plan).values()) == {4}
    assert rotated(arms, 5) == (Arm.ASYNC, Arm.CLOUD, Arm.LOCKSTEP)


def test_the_reference_is_the_cloud_where_it_is_measured() -> None:
    assert reference_of([Arm.ASYNC, Arm.CLOUD]) is Arm.CLOUD
    assert reference_of([Arm.ASYNC, Arm.LOCKSTEP]) is Arm.ASYNC
    assert cells_of("0,2.5", "1,2") == (Cell(0, 1), Cell(0, 2), Cell(2.5, 1), Cell(2.5, 2))
    assert (str(Cell(2.5, 1)), str(Cell(0, 3))) == ("RTT 2.5 ms, 1 stream", "RTT 0 ms, 3 streams")
