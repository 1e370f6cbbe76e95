"""Events cross between processes unchanged."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from pilotfish_cloud.engine.event_codec import pack, unpack
from pilotfish_cloud.engine.interface import AdviceEvent, CommitEvent, EngineEvent, FailedEvent, OpenedEvent
from pilotfish_core.cloud_core import VerifyCounts
from pilotfish_core.drafts import Commit, Finish, FinishReason, Origin, TokenLogprobs
from pilotfish_core.errors import Unavailable
from pilotfish_core.modes import Advice

IDS = st.integers(0, 2**31)
FINISHES = st.builds(Finish, st.sampled_from(FinishReason), st.none() | IDS | st.text(max_size=3))
LOGPROBS = st.builds(TokenLogprobs, st.floats(-9, 0), st.lists(st.tuples(IDS, st.floats(-9, 0)), max_size=2).map(tuple))


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    tokens = tuple(draw(st.lists(IDS, max_size=4)))
    count = len(tokens)
    return Commit(
        position=draw(IDS),
        tokens=tokens,
        accepted=draw(st.integers(0, count)),
        origin=draw(st.sampled_from(Origin)),
        finish=draw(st.none() | FINISHES),
        logprobs=draw(st.none() | st.lists(LOGPROBS, min_size=count, max_size=count).map(tuple)),
    )


COUNTS = st.builds(VerifyCounts, steps=IDS, drafted_at=st.lists(IDS, max_size=3))


@given(st.lists(st.tuples(st.text(max_size=3), commits(), st.floats(0, 1e9), st.none() | COUNTS)))
def test_commits_come_out_as_they_went_in(values: list[tuple[str, Commit, float, VerifyCounts | None]]) -> None:
    events: list[EngineEvent] = [CommitEvent(*value) for value in values]
    assert unpack(pickle.loads(pickle.dumps(pack(events)))) == events


def test_other_events_keep_their_place() -> None:
    error = Unavailable("gone", private="why", retry_after_s=2.0)
    events: list[EngineEvent] = [
        OpenedEvent("a", 16),
        CommitEvent("a", Commit(position=3, tokens=(1,)), 0.5),
        AdviceEvent("a", Advice(step_s=0.03)),
        FailedEvent("b", error),
    ]
    *same, failed = unpack(pickle.loads(pickle.dumps(pack(events))))
    assert same == events[:3]
    assert isinstance(failed, FailedEvent)
    assert (str(failed.error), failed.error.private, failed.error.retry_after_s) == ("gone", "why", 2.0)
