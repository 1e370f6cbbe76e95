"""Frames carry messages unchanged, in few bytes, and nonsense is refused."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilotfish_core.drafts import Commit, DraftRun, Finish, FinishReason, Origin, TokenLogprobs
from pilotfish_core.errors import InvalidParameter, PilotfishError, ProtocolViolation
from pilotfish_core.messages import Acknowledged, Open, Opened, Ping, Pong
from pilotfish_core.modes import Advice, CloudDraft, Hint, Mode, Pacing
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.prompts import PromptPrefix, prefixes
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.wire import CloudFrameReader, CloudFrameWriter, DeviceFrameReader, DeviceFrameWriter

IDS = st.integers(0, 2**31 - 1)


def opening(**changes: Any) -> Open:
    values: dict[str, Any] = {
        "model": "m",
        "tokenizer_hash": "ab" * 32,
        "generation_id": bytes(16),
        "attempt": 1,
        "prompt": (1, 2, 3),
        "params": SamplingParams(),
    }
    return Open(**values | changes)


OPENED = Opened(
    model="m",
    fingerprint="f",
    max_model_len=9,
    max_draft_tokens=8,
    max_unacknowledged=7,
    cached_tokens=6,
    routes=("a", "b.c~d-e_f"),
)

OPEN = opening()

params = st.builds(
    SamplingParams,
    temperature=st.just(0.0) | st.floats(1e-12, 2),
    top_k=st.integers(0, 1000),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100), max_size=4).map(
        lambda bias: tuple(sorted(bias.items()))
    ),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=st.integers(1, 10**6),
    ignore_eos=st.booleans(),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(params=params, output=st.lists(IDS).map(tuple), attempt=st.integers(1, 10**6))
def test_open_crosses_unchanged(params: SamplingParams, output: tuple[int, ...], attempt: int) -> None:
    message = opening(params=params, output=output, attempt=attempt, fingerprint="pf-1", allow_other_fingerprint=True)
    frame = pb.DeviceFrame.FromString(DeviceFrameWriter().open(message).SerializeToString())
    assert DeviceFrameReader().read(frame) == [message]


def test_a_prompt_by_hash_may_be_opened_again_with_its_ids() -> None:
    prompt = tuple(range(40))
    prefix = prefixes(prompt)[-1]
    by_hash, by_ids = opening(prompt=prompt[prefix.length :], prefix=prefix), opening(prompt=prompt)
    writer, reader = DeviceFrameWriter(), DeviceFrameReader()
    assert reader.read(writer.open(by_hash)) == [by_hash]
    assert by_hash.prompt_length == by_ids.prompt_length == 40
    assert reader.read(writer.open(by_ids)) == [by_ids]
    assert reader.read(writer.draft(DraftRun(0, 40, (7,)))) == [Acknowledged(40), DraftRun(0, 40, (7,))]
    with pytest.raises(ProtocolViolation, match="a second open"):
        reader.read(writer.open(by_ids))


@pytest.mark.parametrize(
    ("again", "complaint"),
    [
        ({"prompt": (), "prefix": PromptPrefix(bytes(32), 32)}, "a second open"),
        ({"prompt": tuple(range(39))}, "had 40 tokens by hash and has 39 by ids"),
    ],
)
def test_another_open_than_that_with_the_ids_is_refused(again: dict[str, Any], complaint: str) -> None:
    reader = DeviceFrameReader()
    reader.read(DeviceFrameWriter().open(opening(prompt=(1,) * 8, prefix=PromptPrefix(bytes(32), 32))))
    with pytest.raises(ProtocolViolation, match=complaint):
        reader.read(DeviceFrameWriter().open(opening(**again)))


@pytest.mark.parametrize(("digest", "length"), [(b"", 16), (bytes(32), 0), (bytes(31), 16), (bytes(32), 17)])
def test_a_prefix_that_cannot_be_is_refused(digest: bytes, length: int) -> None:
    frame = DeviceFrameWriter().open(opening())
    frame.open.prompt.prefix_hash, frame.open.prompt.prefix_length = digest, length
    with pytest.raises(ProtocolViolation, match="prompt's prefix"):
        DeviceFrameReader().read(frame)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.lists(IDS, min_size=1, max_size=5), st.none() | IDS),
        min_size=1,
    )
)
def test_draft_runs_cross_unchanged(steps: list[tuple[int, int, list[int], int | None]]) -> None:
    writer, reader = DeviceFrameWriter(), DeviceFrameReader()
    reader.read(writer.open(opening()))
    branch = start = 0
    for jump, back, tokens, acknowledged in steps:
        opens = jump > 0 or start == 0
        branch += jump
        start = max(start - back, 0) if jump else start
        run = DraftRun(branch, start, tuple(tokens))
        start = run.end
        frame = pb.DeviceFrame.FromString(writer.draft(run, acknowledged).SerializeToString())
        length = run.start if opens and acknowledged is None else acknowledged  # a branch acknowledges its start
        expected: list[Any] = [] if length is None else [Acknowledged(length)]
        assert reader.read(frame) == [*expected, run]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.builds(
            Commit,
            position=st.integers(0, 3),
            tokens=st.lists(IDS, min_size=1, max_size=6).map(tuple),
            accepted=st.integers(0, 1),
            origin=st.sampled_from([Origin.RECOVERED, Origin.BONUS, Origin.CLOUD]),
            finish=st.none()
            | st.builds(Finish, st.sampled_from(FinishReason), st.none() | IDS | st.text(min_size=1, max_size=5)),
        )
    )
)
def test_commits_cross_unchanged(commits: list[Commit]) -> None:
    writer, reader = CloudFrameWriter(), CloudFrameReader()
    assert reader.read(writer.opened(OPENED)) == [OPENED]
    for commit in commits:
        frame = pb.CloudFrame.FromString(writer.commit(commit).SerializeToString())
        (back,) = reader.read(frame)
        assert isinstance(back, Commit)
        assert (back.position, back.tokens, back.accepted, back.finish) == (
            commit.position,
            commit.tokens,
            commit.accepted,
            commit.finish,
        )
        assert [back.origin_of(index) for index in range(len(back.tokens))] == [
            commit.origin_of(index) for index in range(len(commit.tokens))
        ]


def test_logprobs_cross_as_single_precision() -> None:
    commit = Commit(0, (5,), logprobs=(TokenLogprobs(-0.5, ((5, -0.5), (6, -1.25))),))
    reader = CloudFrameReader()
    reader.read(CloudFrameWriter().opened(OPENED))
    assert reader.read(CloudFrameWriter().commit(commit)) == [commit]


@given(
    pacing=st.sampled_from(Pacing),
    source=st.sampled_from(CloudDraft),
    hint=st.builds(Hint, st.booleans(), st.booleans(), st.booleans()),
)
def test_mode_and_hint_cross(pacing: Pacing, source: CloudDraft, hint: Hint) -> None:
    mode = Mode(pacing, source)
    writer, reader = DeviceFrameWriter(), DeviceFrameReader()
    message = dataclasses.replace(OPEN, mode=mode, hint=hint)
    assert reader.read(writer.open(message)) == [message]
    assert reader.read(writer.mode(mode)) == [mode]
    assert reader.read(writer.hint(hint)) == [hint]


@given(
    step_us=st.integers(0, 2**32 - 1),
    source=st.sampled_from(CloudDraft),
    gain=st.floats(-1, 100, width=32),
    cost=st.floats(0, 100, width=32),
    most=st.none() | st.integers(0, 64),
    reason=st.text(max_size=10),
)
def test_advice_crosses(
    step_us: int, source: CloudDraft, gain: float, cost: float, most: int | None, reason: str
) -> None:
    advice = Advice(step_us / 1e6, source, gain, cost, most, reason)
    reader = CloudFrameReader()
    reader.read(CloudFrameWriter().opened(OPENED))
    assert reader.read(CloudFrameWriter().advice(advice)) == [advice]


def test_a_run_without_tokens_opens_a_branch() -> None:
    writer, reader = DeviceFrameWriter(), DeviceFrameReader()
    reader.read(writer.open(OPEN))
    begin = len(OPEN.prompt) + len(OPEN.output)
    empty, after = DraftRun(0, begin + 2, ()), DraftRun(1, begin + 3, (7, 8))
    assert reader.read(writer.draft(empty)) == [Acknowledged(begin + 2), empty]
    assert reader.read(writer.draft(after)) == [Acknowledged(begin + 3), after]


def test_a_mode_or_an_advice_that_makes_no_sense_is_refused() -> None:
    reader = DeviceFrameReader()
    reader.read(DeviceFrameWriter().open(OPEN))
    with pytest.raises(ProtocolViolation, match="pacing 9"):
        reader.read(pb.DeviceFrame(mode=pb.Mode(pacing=9)))  # type: ignore[arg-type]
    assert reader.read(pb.DeviceFrame(mode=pb.Mode(cloud_draft=9))) == [Mode()]  # type: ignore[arg-type]
    cloud = CloudFrameReader()
    cloud.read(CloudFrameWriter().opened(OPENED))
    for gain in (float("nan"), -2.0, float("inf")):
        with pytest.raises(ProtocolViolation, match="gain"):
            cloud.read(pb.CloudFrame(advice=pb.Advice(cloud_gain=gain, cloud_cost=1.0)))


def test_pings_cross() -> None:
    reader = DeviceFrameReader()
    reader.read(DeviceFrameWriter().open(opening()))
    assert reader.read(DeviceFrameWriter().ping(Ping(7))) == [Ping(7)]
    assert CloudFrameReader().read(CloudFrameWriter().pong(Ping(7))) == [Pong(7)]


def test_bytes_at_a_large_vocabulary() -> None:
    """Runs that continue: at most 4 bytes a draft token; a new branch 2 more; a usual commit at most 12 bytes."""
    source = random.Random(0)
    writer, cloud = DeviceFrameWriter(), CloudFrameWriter()
    writer.open(opening(prompt=(1,) * 2000))
    assert writer.draft(DraftRun(0, 2000, (150_000,)), 2000).ByteSize() == 6
    cloud.commit(Commit(2000, (1,)))
    start = 2001
    for length in (1, 2, 3, 4, 8):
        run = DraftRun(0, start, tuple(source.randrange(16_384, 151_936) for _ in range(length)))
        start = run.end
        assert writer.draft(run).ByteSize() <= 4 * length
    assert writer.draft(DraftRun(1, 2010, (150_000,)), 2010).ByteSize() == 6
    assert cloud.commit(Commit(2001, (150_000, 150_001), 1, Origin.RECOVERED)).ByteSize() <= 12
    assert cloud.commit(Commit(2003, (150_000,))).ByteSize() <= 6


def test_the_long_forms_are_read_too() -> None:
    """A peer need not use the short forms of one token and of a new branch."""
    device, cloud = DeviceFrameReader(), CloudFrameReader()
    device.read(DeviceFrameWriter().open(opening()))
    assert device.read(pb.DeviceFrame(tokens=[5], branch=0, start=3, acknowledged=2)) == [
        Acknowledged(2),
        DraftRun(0, 3, (5,)),
    ]
    assert device.read(pb.DeviceFrame(tokens=[6])) == [DraftRun(0, 4, (6,))]
    assert device.read(pb.DeviceFrame(tokens=[7, 8], branch=2, start=4)) == [Acknowledged(4), DraftRun(2, 4, (7, 8))]
    assert device.read(pb.DeviceFrame(token=0, advance=1)) == [Acknowledged(5), DraftRun(3, 5, (0,))]
    cloud.read(CloudFrameWriter().opened(OPENED))
    assert cloud.read(pb.CloudFrame(tokens=[5], position=3)) == [Commit(3, (5,), 0, Origin.RECOVERED)]
    assert cloud.read(pb.CloudFrame(tokens=[5, 6], accepted=1)) == [Commit(4, (5, 6), 1, Origin.RECOVERED)]


def test_a_commit_says_how_many_were_drafted_only_when_it_is_not_all_but_the_last() -> None:
    writer, reader = CloudFrameWriter(), CloudFrameReader()
    reader.read(writer.opened(OPENED))
    for commit, said in [
        (Commit(3, (5, 6, 7), 2, Origin.BONUS), False),
        (Commit(6, (5,), 0, Origin.CLOUD), False),
        (Commit(7, (5, 6), 2, Origin.RECOVERED, Finish(FinishReason.STOP, 6)), True),
        (Commit(9, (5,), 1, Origin.RECOVERED, Finish(FinishReason.LENGTH)), True),
        (Commit(10, (5, 6), 0, Origin.CLOUD), True),
        (Commit(12, (), 0, Origin.RECOVERED, Finish(FinishReason.LENGTH)), False),
    ]:
        frame = writer.commit(commit)
        assert frame.HasField("accepted") is said
        assert reader.read(pb.CloudFrame.FromString(frame.SerializeToString())) == [commit]


@pytest.mark.parametrize(
    "frames",
    [
        [pb.DeviceFrame(tokens=[1])],
        [pb.DeviceFrame(open=pb.Open(protocol_version=9, generation_id=bytes(16)))],
        [pb.DeviceFrame(open=pb.Open(protocol_version=1, generation_id=b"short"))],
        [DeviceFrameWriter().open(opening()), DeviceFrameWriter().open(opening())],
        [DeviceFrameWriter().open(opening()), pb.DeviceFrame(tokens=[1])],
        [DeviceFrameWriter().open(opening()), pb.DeviceFrame(tokens=[1], branch=1)],
        [DeviceFrameWriter().open(opening()), pb.DeviceFrame(tokens=[1], branch=1, start=2**31 - 1)],
        [DeviceFrameWriter().open(opening()), pb.DeviceFrame(tokens=[1], token=1, branch=1, start=3)],
        [DeviceFrameWriter().open(opening()), pb.DeviceFrame(token=1, branch=1, start=3, advance=0)],
        [DeviceFrameWriter().open(opening()), pb.DeviceFrame(token=1, advance=2**32 - 1)],
    ],
)
def test_frames_that_make_no_sense_are_refused(frames: list[pb.DeviceFrame]) -> None:
    reader = DeviceFrameReader()
    for frame in frames[:-1]:
        reader.read(frame)
    with pytest.raises(ProtocolViolation):
        reader.read(frames[-1])


def test_bad_sampling_parameters_in_a_frame_are_named() -> None:
    frame = DeviceFrameWriter().open(opening())
    frame.open.params.temperature = -1
    with pytest.raises(InvalidParameter, match=r"temperature is -1\.0"):
        DeviceFrameReader().read(frame)


@pytest.mark.parametrize(
    "frames",
    [
        [pb.CloudFrame(tokens=[1], position=0)],
        [CloudFrameWriter().opened(OPENED), CloudFrameWriter().opened(OPENED)],
        [CloudFrameWriter().opened(OPENED), pb.CloudFrame(tokens=[1])],
        [CloudFrameWriter().opened(OPENED), pb.CloudFrame(tokens=[1], position=0, accepted=2)],
        [CloudFrameWriter().opened(OPENED), pb.CloudFrame(tokens=[1], token=1, position=0)],
    ],
)
def test_a_verifier_that_makes_no_sense_is_refused(frames: list[pb.CloudFrame]) -> None:
    reader = CloudFrameReader()
    for frame in frames[:-1]:
        reader.read(frame)
    with pytest.raises(ProtocolViolation):
        reader.read(frames[-1])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_any_bytes_parse_to_messages_or_a_typed_error(data: bytes) -> None:
    try:
        frame = pb.DeviceFrame.FromString(data)
    except Exception as error:  # protobuf's own
        assert type(error).__name__ == "DecodeError"  # noqa: PT017
        return
    reader = DeviceFrameReader()
    try:
        reader.read(frame)
    except PilotfishError as error:
        assert str(error)  # noqa: PT017
