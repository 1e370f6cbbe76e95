"""How near ``auto`` comes to the best arm, with the real cores and policies under a virtual clock."""

from __future__ import annotations

import pytest

from pilotfish_core.modes import Arm
from tests.core.lab import Lab, compare

ARMS = (Arm.CLOUD, Arm.CO_LOCATED, Arm.ASYNC, Arm.AUTO)


def auto_to_best(lab: Lab, *, seeds: int = 3) -> float:
    """The speed of ``auto`` over that of the best other arm."""
    speeds, _ = compare(lab, ARMS, seeds=seeds, answers=6)
    return speeds.pop(Arm.AUTO) / max(speeds.values())


@pytest.mark.slow
@pytest.mark.parametrize("quality", [(0.9, 0.55), (0.7, 0.7)])
def test_moods_of_the_text_do_not_drive_it_from_the_better_arm(quality: tuple[float, float]) -> None:
    """The device next door drafts a little faster than the cloud itself."""
    assert auto_to_best(Lab(quality=quality), seeds=16) > 0.975


@pytest.mark.parametrize(
    "lab",
    [
        Lab(draft_s=0.008),
        Lab(rtt_s=0.02),
        Lab(rtt_s=0.1),
        Lab(quality=(0.05, 0.0)),
        Lab(cloud_model=False),
    ],
    ids=["slower-device", "20-ms", "100-ms", "junk", "no-cloud-model"],
)
def test_it_is_never_far_from_the_best_arm(lab: Lab) -> None:
    assert auto_to_best(lab) > 0.95
