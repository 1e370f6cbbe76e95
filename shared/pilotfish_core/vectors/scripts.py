"""Recorded scripts of the device core, for other languages to replay: what it is told and what it answers.

``python -m pilotfish_core.vectors FOLDER`` writes them, among others. A script is an object with ``config``,
``prompt``, ``maxTokens``, ``drafting``, ``hint``, ``unverified`` (what was shown the last time), ``keepsMemory`` (the
policy goes on with what the script before it learned), ``random`` (the numbers in [0, 1) that its backoff draws, in
order) and ``events``, each a list of

    name, arguments, now, answer, state, choice

``answer`` is the list of actions, of ``draft_task`` the task as ``[keep, extend, count]``; ``state`` is
``[state, length, tail, next deadline, away]``; ``choice`` what the policy then says:
``[arm, reason, window, gain, gather_s(3), burst(2)]``. The rule for the end of an answer, for what a device writes
alone: token 49, or ``maxTokens`` of them.
"""

from __future__ import annotations

from typing import Any, Final

from pilotfish_core.draft_policy import PolicyMemory
from pilotfish_core.vectors.script_forms import config_form, hint_form
from pilotfish_core.vectors.script_world import ScriptWorld

SCRIPTS: Final = 400
SHARED: Final = 4  # scripts that share a memory, one after the other


def script_vectors(count: int = SCRIPTS) -> list[dict[str, Any]]:
    """Scripts 0 .. count - 1."""
    scripts: list[dict[str, Any]] = []
    memory: PolicyMemory | None = None
    for number in range(count):
        keeps = number % SHARED != 0
        world = ScriptWorld(number, memory if keeps else None)
        memory = world.memory
        world.run()
        scripts.append(
            {
                "number": number,
                "keepsMemory": keeps,
                "prompt": world.prompt,
                "maxTokens": world.max_tokens,
                "drafting": world.drafting,
                "unverified": world.restored,
                "hint": hint_form(world.first_hint),
                "config": config_form(world.config),
                "random": world.jitter.given,
                "events": world.events,
            }
        )
    return scripts
