"""From a verifier and links to figures: what needs the target is prepared, then the cells are run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from pilotfish.addresses import parse_addresses
from pilotfish.bench.drafts import DraftKind
from pilotfish.bench.plan import Cell
from pilotfish.bench.progress import Progress
from pilotfish.bench.prompts import WARM_UP
from pilotfish.bench.runner import Measured, Runner, Tokens, Work, answer
from pilotfish.bench.settings import Settings
from pilotfish.bench.stage import Stage
from pilotfish.client import AsyncClient
from pilotfish.credentials import Credentials
from pilotfish.foreign_text import one_line
from pilotfish.result import Result
from pilotfish.transport import Transport
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import InvalidParameter, UnknownModel
from pilotfish_core.modes import Arm, CloudDraft
from pilotfish_core.tokenizer import Tokenizer
from pilotfish_core.trace import TraceWriter

Done = Callable[[Cell, Measured], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What the verifier says of itself."""

    model: str
    fingerprint: str
    dtype: str
    deterministic: bool


async def sweep(
    settings: Settings, stage: Stage, progress: Progress, done: Done, trace: TraceWriter | None = None
) -> Target:
    """Run every cell; ``done`` is called after each with all that was measured so far. What counts, and the warm-ups
    before it, is written to ``trace``.

    Raises what the verifier answers, and what ends an answer.
    """
    target = await describe(stage.server, settings.model)
    async with AsyncClient(
        stage.server, draft=None, tokenizer=settings.tokenizer, model=settings.model, arm=Arm.CLOUD
    ) as client:
        await client.prepare()
        tokenizer = client.tokenizer
        prompts = [tuple(tokenizer.encode(prompt)) for prompt in settings.prompts]
        warm_up = tuple(tokenizer.encode(WARM_UP))
        drafter = stage.drafter
        progress.show("asking for every prompt once")
        primed = await _prime(client, [*prompts, warm_up], settings)
    truth = [(*prompt, *result.token_ids) for prompt, result in zip([*prompts, warm_up], primed, strict=True)]
    _check_arms(settings.arms, primed[-1])
    if drafter is None and settings.device_drafts:
        drafter = settings.draft.make(tokenizer.vocab_size, truth, settings.sampling["seed"])
    work = Work(
        prompts=prompts,
        warm_up=warm_up,
        sampling=settings.sampling,
        repeats=settings.repeats,
        warmup=settings.warmup,
        timeout_s=settings.timeout_s,
    )
    runner = Runner(work, _connecting(settings, stage, tokenizer, drafter, trace), progress)
    for cell in settings.cells:
        await runner.run(cell, settings.arms)
        done(cell, runner.measured)
    return target


async def describe(server: str, model: str) -> Target:
    """Ask the verifier what it serves. Raises UnknownModel, Unavailable and the like."""
    addresses, credentials = parse_addresses(server), Credentials.load()
    credentials.check_addresses(addresses, insecure=False)
    transport = Transport(addresses, credentials)
    try:
        served = (await transport.describe()).models
    finally:
        await transport.close()
    chosen = next((entry for entry in served if model in ("", entry.name)), None)
    if chosen is None:
        names = one_line(", ".join(repr(entry.name) for entry in served))
        raise UnknownModel(f"the verifier does not serve model {model!r}; it serves {names}")
    return Target(one_line(chosen.name), one_line(chosen.fingerprint), one_line(chosen.dtype), chosen.deterministic)


def _check_arms(arms: Sequence[Arm], primed: Result) -> None:
    """Raises InvalidParameter for an arm that would not be what it is called: only a verifier knows what it offers."""
    if Arm.CO_LOCATED_MODEL in arms and primed.metrics.policy["cloud_draft"] != CloudDraft.MODEL.name.lower():
        raise InvalidParameter.of(
            "--arms", str(Arm.CO_LOCATED_MODEL), "another arm: the verifier has no draft model (--draft-model)"
        )


async def _prime(client: AsyncClient, prompts: Sequence[Tokens], settings: Settings) -> list[Result]:
    """Have the cloud alone answer each prompt.

    From then on the verifier's prefix cache holds all of them, and no arm pays for the first sight of a prompt. Only
    an oracle needs to know more than the first token.
    """
    sampling = settings.sampling if settings.draft.kind is DraftKind.ORACLE else settings.sampling | {"max_tokens": 1}
    return [await answer(client, prompt, sampling, settings.timeout_s) for prompt in prompts]


def _connecting(
    settings: Settings, stage: Stage, tokenizer: Tokenizer, drafter: Drafter | None, trace: TraceWriter | None
) -> Callable[[Arm, Cell], AsyncClient]:
    def connect(arm: Arm, cell: Cell) -> AsyncClient:
        return AsyncClient(
            stage.servers[cell.rtt_ms],
            draft=drafter if arm.device_drafts or arm is Arm.AUTO else None,
            tokenizer=tokenizer,
            model=settings.model,
            window=settings.window,
            arm=arm,
            trace=None
            if trace is None
            else trace.client(
                str(arm),
                rtt_ms=cell.rtt_ms,
                concurrency=cell.concurrency,
                warmup=settings.warmup * cell.concurrency,
            ),
        )

    return connect
