"""Frames padded to size classes, because packet sizes leak text: 32, 64, 128, ... bytes of serialised protobuf.

The length of a run or commit tells how well the draft guessed, and thereby something of the text, to whoever sees
encrypted packets. In a class all frames look alike; when they are sent still shows. See "Remote Timing Attacks on
Efficient Language Model Inference" (Carlini and Nasr, 2024) for what such lengths give away.
"""

from __future__ import annotations

from typing import Final

from pilotfish_core.proto.v1 import verifier_pb2 as pb

SMALLEST_CLASS: Final = 32


def pad(frame: pb.DeviceFrame | pb.CloudFrame) -> None:
    """Fill ``frame`` up to the smallest class that it can be filled up to."""
    frame.ClearField("padding")
    size = frame.ByteSize()
    target = SMALLEST_CLASS
    while target < size or (target > size and _filling(target - size) is None):
        target *= 2
    if target > size:
        frame.padding = bytes(_filling(target - size) or 0)


def _filling(room: int) -> int | None:
    """How many bytes of padding take ``room`` bytes with their tag and length; None: no number does.

    The field takes a byte of tag and 1, 2, 3, ... bytes of length. An empty one is not sent.
    """
    for length_bytes in range(1, 5):
        count = room - 1 - length_bytes
        if count >= 1 and (count.bit_length() + 6) // 7 == length_bytes:
            return count
    return None
