"""The figures as a picture: tokens a second over the round trip, a line for each arm, a panel for each concurrency."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

from pilotfish.bench.rows import Row
from pilotfish_core.errors import MissingExtra
from pilotfish_core.modes import Arm

# Okabe and Ito's colours, which the colour-blind can tell apart; the markers say the same again.
STYLES: Final = {
    Arm.CLOUD: ("#000000", "o"),
    Arm.CO_LOCATED: ("#0072b2", "s"),
    Arm.CO_LOCATED_NGRAM: ("#56b4e9", "v"),
    Arm.CO_LOCATED_MODEL: ("#cc79a7", "^"),
    Arm.LOCKSTEP: ("#e69f00", "D"),
    Arm.ASYNC: ("#009e73", "P"),
    Arm.AUTO: ("#d55e00", "X"),
}
SIDE_STEP: Final = 0.012  # of the width, between the bars of arms at one round trip
DPI: Final = 144


def draw(rows: Sequence[Row], title: str) -> bytes:
    """A PNG. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure  # not pyplot: that keeps figures, and may look for a display
    except ModuleNotFoundError as error:
        raise MissingExtra.of(error.name or "matplotlib", "bench", "--plot") from None
    concurrencies = sorted({row["concurrency"] for row in rows})
    figure = Figure(figsize=(1.2 + 5.6 * len(concurrencies), 4.8), layout="constrained")
    panels = figure.subplots(1, len(concurrencies), squeeze=False)[0]
    for panel, concurrency in zip(panels, concurrencies, strict=True):
        _panel(panel, [row for row in rows if row["concurrency"] == concurrency])
        panel.set_title("one stream" if concurrency == 1 else f"{concurrency} streams at once", fontsize=10)
        panel.set_ylabel("tokens/s" if concurrency == 1 else "tokens/s, all streams together")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(title, fontsize=9.5)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    return data.getvalue()


def _panel(panel: Any, rows: Sequence[Row]) -> None:
    """Medians as lines, quartiles as bars, those of different arms a little apart."""
    times = sorted({row["rtt_ms"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    width = (times[-1] - times[0]) or 1.0
    for index, arm in enumerate(arms):
        own = sorted((row for row in rows if row["arm"] == arm), key=lambda row: float(row["rtt_ms"]))
        speeds = [row["tokens_per_s"] for row in own]
        ends = [row["tokens_per_s_quartiles"] or (row["tokens_per_s"],) * 2 for row in own]
        colour, marker = STYLES[Arm(arm)]
        panel.errorbar(
            [row["rtt_ms"] + (index - (len(arms) - 1) / 2) * SIDE_STEP * width for row in own],
            speeds,
            # The total over several rounds may lie beyond the quartiles of the rounds.
            yerr=[
                [max(0.0, speed - low) for speed, (low, _) in zip(speeds, ends, strict=True)],
                [max(0.0, high - speed) for speed, (_, high) in zip(speeds, ends, strict=True)],
            ],
            label=arm,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            elinewidth=1.0,
            capsize=2.5,
        )
    panel.set_xticks(times, [f"{time:g}" for time in times])
    panel.set_xlabel("round trip, ms")
    panel.set_ylim(bottom=0)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
