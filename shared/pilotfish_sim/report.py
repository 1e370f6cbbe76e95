"""Rows for people and for other programs: a table, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, Final

from pilotfish_sim.rows import Row

Show = Callable[[Row], str]


def _plain(name: str, form: str) -> Show:
    return lambda row: "-" if row.get(name) is None else format(row[name], form)


COLUMNS: Final[tuple[tuple[str, Show], ...]] = (
    ("tokens/s", _plain("tokens_per_s", ".1f")),
    ("x cloud", _plain("ratio_to_cloud", ".2f")),
    ("TTFT ms", _plain("ttft_ms", ".0f")),
    ("p99", _plain("ttft_ms_p99", ".0f")),
    ("TPOT ms", _plain("tpot_ms", ".1f")),
    ("p99", _plain("tpot_ms_p99", ".1f")),
    ("steps/tok", _plain("steps_per_token", ".2f")),
    ("useful", _plain("useful_draft_fraction", ".0%")),
    ("B up", _plain("bytes_up_per_token", ".1f")),
    ("B down", _plain("bytes_down_per_token", ".1f")),
    ("busy", _plain("utilisation", ".0%")),
    ("$/M tok", _plain("usd_per_million_tokens", ".2f")),
    ("J/tok", _plain("device_j_per_token", ".2f")),
    ("same", lambda row: "yes" if row["identical"] else f"NO ({row['differing_answers']})"),
)
LEGEND: Final = (
    "Simulated. tokens/s: of an answer from question to last token, median; with several devices, of all together.\n"
    "x cloud: an answer's speed over that of the cloud alone, median. useful: accepted of the draft tokens sent.\n"
    "B: payload a token. busy: share of the time that the target computes. J: of the device and its radio, a token."
)


def table(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """A line for each row under the names of its columns; ``keys``: what was set (``row["set"]``), besides the arm."""
    columns = columns_of(rows, keys)
    cells = [[title for title, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    left = 1 + len([key for key in keys if key != "arm"])
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def columns_of(rows: Sequence[Row], keys: Sequence[str]) -> list[tuple[str, Show]]:
    """Titles, and what each shows of a row: those that say something of these rows."""
    keys = [key for key in keys if key != "arm"]
    columns = [("arm", _plain("arm", "")), *((key, _set(key)) for key in keys), *COLUMNS]
    dull = {"$/M tok": "usd_per_million_tokens", "J/tok": "device_j_per_token", "x cloud": "ratio_to_cloud"}
    return [
        (title, show)
        for title, show in columns
        if title not in dull or any(row.get(dull[title]) for row in rows)  # nobody asked
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """The rows' plain values under a line of names; what was set comes first."""
    names: list[str] = []
    flat: list[dict[str, Any]] = []
    for row in rows:
        values = {f"set.{key}": value for key, value in row.get("set", {}).items()}
        values |= {key: value for key, value in row.items() if not isinstance(value, dict | list)}
        flat.append(values)
        names += [name for name in values if name not in names]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _set(key: str) -> Show:
    return lambda row: "-" if row.get("set", {}).get(key) is None else str(row["set"][key])
