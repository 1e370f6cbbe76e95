"""What a benchmark stands on: processors, a verifier, a drafter, links. All of it is gone afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from pilotfish.addresses import parse_addresses
from pilotfish.bench.drafts import DraftChoice, DraftKind
from pilotfish.bench.link_process import NOWHERE, LinkProcess
from pilotfish.bench.pinning import Pins, pinned
from pilotfish.bench.settings import LocalVerifier, Settings
from pilotfish.demo.stage import VerifierProcess, exported_draft, find_reference, inflated_target
from pilotfish.files import check_folder
from pilotfish_core.drafter import Drafter
from pilotfish_core.errors import LocalError

QUANT = "int8"  # of the reference draft


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """``server``: the verifier's own address or addresses; ``servers``: as reached at each round trip in ms.

    ``drafter``: None also where only the target's answers make one.
    """

    server: str
    servers: Mapping[float, str]
    drafter: Drafter | None
    pins: Pins | None


@contextlib.contextmanager
def staged(settings: Settings, say: Callable[[str], None]) -> Iterator[Stage]:
    """Start everything, cheap checks first. Raises what is wrong with any of it."""
    with ExitStack() as stack:
        pins = stack.enter_context(pinned()) if settings.pin else None
        through = [
            rtt for rtt in dict.fromkeys(cell.rtt_ms for cell in settings.cells) if not settings.link.direct(rtt)
        ]
        if through:
            with LinkProcess(NOWHERE, settings.link.flags(min(through))):
                pass  # its options are right: better known before a model is loaded
        target, draft = _models(settings, say)
        drafter = draft.load() if settings.device_drafts else None
        if drafter is not None:
            stack.callback(drafter.close)
        server = settings.server
        if settings.local is not None and target is not None:
            say(f"starting a verifier ({' '.join(settings.local.flags)})")
            server = _verifier(target, settings, pins, stack)
        servers = {rtt: _through_links(server, settings.link.flags(rtt), stack) for rtt in through}
        yield Stage(server, {cell.rtt_ms: servers.get(cell.rtt_ms, server) for cell in settings.cells}, drafter, pins)


def _models(settings: Settings, say: Callable[[str], None]) -> tuple[Path | None, DraftChoice]:
    """The target to serve here, if any, and the draft with its folder known."""
    draft = settings.draft
    if settings.local is None:
        return None, draft
    reference = find_reference(settings.reference)
    work = Path(settings.work_dir) if settings.work_dir else reference.parent / "build" / "demo"
    check_folder("--work-dir", work)
    say("preparing the reference pair (kept for the next time)")
    target = inflated_target(reference, work.resolve(), settings.local.layers)
    if settings.device_drafts and draft.kind is DraftKind.MODEL and draft.folder is None:
        draft = dataclasses.replace(draft, folder=str(exported_draft(reference, work.resolve(), QUANT)))
    return target, draft


def _verifier(target: Path, settings: Settings, pins: Pins | None, stack: ExitStack) -> str:
    local: LocalVerifier | None = settings.local
    flags = list(local.flags) if local is not None else []
    if local is not None and local.draft_model:
        flags += ["--draft-model", str(find_reference(settings.reference) / "draft")]
    if settings.verifier_trace is not None:
        flags += ["--trace", settings.verifier_trace]
    verifier = VerifierProcess(target, *flags)
    stack.callback(verifier.stop)  # first: it does no harm to one that was not started
    with contextlib.nullcontext() if pins is None else pins.starting_verifier():
        verifier.start()
    try:
        verifier.wait_ready()
    except LocalError as error:  # its last line says what is wrong, the others how it is used
        raise LocalError(f"the verifier did not start: {str(error).splitlines()[-1]}") from None
    return verifier.address


def _through_links(server: str, flags: list[str], stack: ExitStack) -> str:
    """A link to each of the addresses. Returns where they are reached."""
    links = [stack.enter_context(LinkProcess(str(address), flags)) for address in parse_addresses(server)]
    return ",".join(link.address for link in links)
