"""Drafting must not be felt: the model runs in a worker, and the page's own thread is never busy for a whole frame."""

from __future__ import annotations

import asyncio
import collections
from typing import Any, Final

import pytest

from pilotfish.demo.stage import VerifierProcess
from tests.browser.phone import Phone, Question

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]
LONGEST_TASK_MS: Final = 50.0


async def tasks_of_the_page(phone: Phone, question: Question) -> list[float]:
    """Processor time of each task of the page's main thread while it drafts, in milliseconds. Not the time on a clock:
    a busy machine makes that as long as it likes.
    """
    session = await phone.context.new_cdp_session(phone.page)
    events: list[dict[str, Any]] = []
    complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    session.on("Tracing.dataCollected", lambda data: events.extend(data["value"]))
    session.on("Tracing.tracingComplete", lambda _: complete.set_result(None))
    categories = ["toplevel", "disabled-by-default-devtools.timeline", "devtools.timeline"]
    await session.send(
        "Tracing.start", {"traceConfig": {"includedCategories": categories}, "transferMode": "ReportEvents"}
    )
    await phone.answer(question)
    await session.send("Tracing.end")
    await complete
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"].get("name") == "CrRendererMain"
    }
    return [
        event["tdur"] / 1000
        for event in events
        if event.get("name") == "RunTask" and (event["pid"], event["tid"]) in threads and "tdur" in event
    ]


async def test_no_task_of_the_page_is_as_long_as_three_frames(verifier: VerifierProcess, phone: Phone) -> None:
    await phone.open(verifier.http)
    await phone.answer(Question(max_tokens=32))  # what is compiled once is compiled now
    times = await tasks_of_the_page(phone, Question(max_tokens=256))
    assert len(times) > 100, collections.Counter(round(time) for time in times)
    assert max(times) < LONGEST_TASK_MS
