from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish_core.drafts import Commit, DraftRun
from pilotfish_core.messages import Acknowledged, Open, Ping
from pilotfish_core.padding import SMALLEST_CLASS, _filling, pad
from pilotfish_core.parameters import SamplingParams
from pilotfish_core.proto.v1 import verifier_pb2 as pb
from pilotfish_core.wire import CloudFrameReader, CloudFrameWriter, DeviceFrameReader, DeviceFrameWriter

OPEN = Open(
    model="m", tokenizer_hash="ab" * 32, generation_id=bytes(16), attempt=1, prompt=(1, 2, 3), params=SamplingParams()
)
CLASSES = [SMALLEST_CLASS << power for power in range(20)]
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=400)


@given(TOKENS, st.integers(0, 2**31), st.binary(max_size=40))
def test_sizes_are_those_of_classes_only(tokens: list[int], acknowledged: int, ticket: bytes) -> None:
    for frame in (
        pb.DeviceFrame(tokens=tokens, acknowledged=acknowledged),
        pb.CloudFrame(tokens=tokens, position=acknowledged, ticket=ticket),
    ):
        size = frame.ByteSize()
        pad(frame)
        assert frame.ByteSize() == len(frame.SerializeToString())
        assert frame.ByteSize() in CLASSES
        assert frame.ByteSize() >= size
        again = frame.ByteSize()
        pad(frame)
        assert frame.ByteSize() == again


def test_fillings_take_the_room_that_they_are_for() -> None:
    for room in range(1, 20_000):
        filling = _filling(room)
        frame = pb.DeviceFrame(padding=bytes(filling or 0))
        assert filling is None or frame.ByteSize() == room
        pad(frame)
        assert frame.ByteSize() == SMALLEST_CLASS  # old padding is no contents


@pytest.mark.parametrize("room", [1, 2, 130, 16387, 16388])
def test_rooms_that_cannot_be_filled(room: int) -> None:
    assert (_filling(room) is None) == (room != 16388)


def test_writers_pad_and_readers_do_not_mind() -> None:
    writer, reader = DeviceFrameWriter(padded=True), DeviceFrameReader()
    reader.read(writer.open(OPEN))
    frames = [writer.draft(DraftRun(0, 3, (7, 8))), writer.acknowledge(5), writer.ping(Ping(1))]
    assert {frame.ByteSize() for frame in frames} == {SMALLEST_CLASS}
    assert [message for frame in frames for message in reader.read(frame)] == [
        Acknowledged(3),
        DraftRun(0, 3, (7, 8)),
        Acknowledged(5),
        Ping(1),
    ]
    assert reader.padded
    cloud = CloudFrameReader()
    cloud._opened = True
    commit = Commit(3, (7, 8), accepted=1)
    frame = CloudFrameWriter(padded=True).commit(commit)
    assert frame.ByteSize() == SMALLEST_CLASS
    assert cloud.read(frame) == [commit]


def test_a_run_and_a_single_token_look_alike() -> None:
    sizes = set()
    for count in range(1, 9):
        writer = CloudFrameWriter(padded=True)
        sizes.add(writer.commit(Commit(100, tuple(range(count)), accepted=count - 1)).ByteSize())
    assert sizes == {SMALLEST_CLASS}
