"""The page in Chromium, emulated as a phone: how fast the draft model writes in WASM, and what the page feels of it.

    make mobile browser
    python -m benchmarks.browser [--answers 5] [--tokens 384] [--json OUT]

One thread of WASM (the page is isolated, but the drafter asks for one). ``alone``: answers of the arm device-only,
after one to warm up; tokens a second of the whole way, from the press of the button, and of the drafter by itself as
the SDK measures it. ``drafting``: answers of the arm device-async against the reference target (float32) on the same
machine; frames are what requestAnimationFrame saw, long tasks what the browser reports from 50 ms on, both on a clock:
another process on the same core makes them longer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any, Final

from playwright.async_api import async_playwright

from mobile_demo.serve import DIST, WORK
from pilotfish.bench.machine import machine
from pilotfish.demo.stage import VerifierProcess, exported_draft, find_reference
from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.browser.phone import Phone, Question, opened_phone

ROOT: Final = Path(__file__).resolve().parent.parent
PROMPT: Final = 'class Stack:\n    """A stack of items."""\n\n    def __init__(self):\n'
WATCH: Final = """
() => {
  window.seen = {frames: [], tasks: []};
  let before = performance.now();
  const next = now => { window.seen.frames.push(now - before); before = now; requestAnimationFrame(next); };
  requestAnimationFrame(next);
  new PerformanceObserver(list => window.seen.tasks.push(...list.getEntries().map(entry => entry.duration)))
    .observe({type: 'longtask'});
}
"""


async def measure(answers: int, tokens: int, quant: str) -> dict[str, Any]:
    reference = find_reference(str(ROOT / "reference"))
    draft = exported_draft(reference, WORK, quant, to="onnx-web")
    arguments = ("--deterministic", "--served-model-name", "reference", "--demo", str(DIST), "--drafts", str(draft))
    with VerifierProcess(reference / "target", *arguments) as verifier:
        await asyncio.to_thread(verifier.wait_ready)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
            async with opened_phone(browser, playwright) as phone:
                await phone.open(verifier.http)
                alone = await _answers(phone, answers, tokens, "device-only")
                drafting = await _answers(phone, answers, tokens, "device-async")
            version = browser.version
            await browser.close()
    return {"chromium": version, "quant": quant, "alone": alone, "drafting": drafting}


async def _answers(phone: Phone, answers: int, tokens: int, arm: str) -> dict[str, Any]:
    await phone.answer(Question(prompt=PROMPT, max_tokens=tokens, seed=0), arm)
    await phone.page.evaluate(WATCH)
    rates, drafted = list[float](), list[float]()
    for seed in range(1, answers + 1):
        await phone.answer(Question(prompt=PROMPT, max_tokens=tokens, seed=seed), arm)
        rates.append(await phone.figure("rate"))
        drafted.append(await phone.figure("draft-rate"))
    seen = await phone.page.evaluate("window.seen")
    frames = sorted(seen["frames"])
    return {
        "answers": answers,
        "tokens_per_s": _spread(rates),
        "draft_tokens_per_s": _spread(drafted),
        "frames": len(frames),
        "frame_p99_ms": round(frames[int(len(frames) * 0.99)], 1),
        "longest_frame_ms": round(frames[-1], 1),
        "long_tasks": len(seen["tasks"]),
        "longest_task_ms": round(max(seen["tasks"], default=0.0), 1),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"least": min(values), "median": statistics.median(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=384, help="at most, for each answer")
    parser.add_argument("--quant", default="int8", choices=("int8", "fp32"))
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    given = parser.parse_args()
    where = machine()
    figures = asyncio.run(measure(given.answers, given.tokens, given.quant))
    for name in ("alone", "drafting"):
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
    if given.json is not None:
        command = shlex.join(["python", "-m", "benchmarks.browser", *sys.argv[1:]])
        given.json.write_text(json.dumps({"command": command, "machine": where, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
