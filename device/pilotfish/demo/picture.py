"""The demo's run as an animated SVG: both answers appear at the pace at which they were measured."""

from __future__ import annotations

import html
from typing import Any, Final

from pilotfish.demo.answers import Answer
from pilotfish.demo.report import table
from pilotfish_core.drafts import Origin

COLOURS: Final = {
    Origin.ACCEPTED: "#7ee787",
    Origin.BONUS: "#79c0ff",
    Origin.RECOVERED: "#e3b341",
    Origin.CLOUD: "#d2a8ff",
    Origin.UNVERIFIED: "#8b949e",
}
PROMPT_COLOUR: Final = "#8b949e"
COLUMNS: Final = 58
LINES: Final = 22
CHARACTER: Final = 7.25  # px, of the monospace font at 12 px
LINE: Final = 16.0
MARGIN: Final = 16.0
TOP: Final = 58.0
PAUSE_S: Final = 4.0  # at the end, before it begins again


def draw(left: Answer, right: Answer, figures: dict[str, Any]) -> str:
    """An SVG document that replays the two answers in a loop, with the table below."""
    width = 2 * (COLUMNS * CHARACTER + MARGIN) + 2 * MARGIN
    verdict = "identical" if figures["identical"] else "DIFFERENT"
    rows = [
        *table(figures),
        "",
        f"{verdict}: {figures['answers']} answers, {figures['failovers']} verifier killed in mid-answer, one junk "
        "drafter",
        f"SHA-256 {figures['sha256']['cloud'][:32]} (cloud alone) = {figures['sha256']['others'][:32]}",
    ]
    height = TOP + LINES * LINE + MARGIN + (len(rows) + 1) * LINE + MARGIN
    duration = max(left.result.metrics.elapsed_s, right.result.metrics.elapsed_s) + PAUSE_S
    styles, body = list[str](), list[str]()
    for x, title, answer in (
        (MARGIN, "cloud alone", left),
        (2 * MARGIN + MARGIN + COLUMNS * CHARACTER, "hybrid: this device drafts", right),
    ):
        rate = f"{answer.result.metrics.tokens_per_s:.0f} tokens/s"
        body.append(_text(x, 28, f"{title}, {rate}", "#e6edf3", "style='font-weight:bold'"))
        body += _column(answer, x, duration, styles)
    x = MARGIN
    for origin in (Origin.ACCEPTED, Origin.RECOVERED, Origin.BONUS, Origin.CLOUD):
        body.append(_text(x, 46, origin.value, COLOURS[origin]))
        x += (len(origin.value) + 2) * CHARACTER
    for index, row in enumerate(rows):
        body.append(_text(MARGIN, TOP + (LINES + 1 + index) * LINE, row, "#e6edf3"))
    rules = "".join(dict.fromkeys(styles))
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' width='{width:.0f}' "
        f"height='{height:.0f}'><style>text{{font:12px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;"
        f"white-space:pre}}{rules}</style><rect width='100%' height='100%' rx='8' fill='#0d1117'/>"
        f"{''.join(body)}</svg>\n"
    )


def _column(answer: Answer, x: float, duration: float, styles: list[str]) -> list[str]:
    """The answer's text from the top, cut at the bottom; each piece appears at its time."""
    body: list[str] = []
    line = column = 0
    timed = [(0.0, answer.prompt, PROMPT_COLOUR)]
    timed += [(piece.at_s, piece.text, COLOURS[piece.origin]) for piece in answer.pieces]
    for at_s, text, colour in timed:
        name = ""
        if at_s > 0:
            percent = 100 * at_s / duration
            name = f"p{round(percent * 100)}"
            styles.append(
                f".{name}{{animation:{name} {duration:.2f}s step-end infinite}}"
                f"@keyframes {name}{{0%{{opacity:0}}{percent:.2f}%{{opacity:1}}}}"
            )
        run, start = "", column
        for character in text.expandtabs(4) + "\0":
            full = column >= COLUMNS
            if character in "\n\0" or full:
                if run.strip() and line < LINES:
                    extra = f"class='{name}'" if name else ""
                    body.append(_text(x + start * CHARACTER, TOP + (line + 1) * LINE, run, colour, extra))
                run = ""
                if character == "\n" or full:
                    line, column = line + 1, 0
                start = column
            if character not in "\n\0":
                run += character
                column += 1
    return body


def _text(x: float, y: float, text: str, colour: str, extra: str = "") -> str:
    length = f"textLength='{len(text) * CHARACTER:.1f}' lengthAdjust='spacing'"
    return f"<text x='{x:.1f}' y='{y:.1f}' fill='{colour}' {length} {extra}>{html.escape(text)}</text>"
