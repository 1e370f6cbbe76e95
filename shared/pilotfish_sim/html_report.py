"""The HTML report of ``run`` and ``sweep``: one file that needs nothing else, in light and dark."""

from __future__ import annotations

import html
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Final

from pilotfish_sim.details import Detail, Timeline
from pilotfish_sim.report import LEGEND, columns_of
from pilotfish_sim.rows import Row
from pilotfish_sim.svg import Line, Mark, bars, lines

MOST_BARS: Final = 24
MOST_POINTS: Final = 400  # of a CDF
SHOWN_TOKENS: Final = 64  # of a timeline

STYLE_FILE: Final = "report.css"  # with a class for each colour of a chart


def page(
    rows: Sequence[Row],
    details: Sequence[Detail],
    timelines: Mapping[str, Timeline],
    *,
    title: str,
    keys: Sequence[str],
    shown: Sequence[int],
) -> str:
    """The whole file. ``details`` belong to ``rows``; ``shown`` are the rows whose answers are shown one by one, and
    whose ``timelines`` are by arm; ``keys`` is what was set.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    colours = {arm: place for place, arm in enumerate(arms)}
    style = importlib.resources.files("pilotfish_sim").joinpath(STYLE_FILE).read_text(encoding="utf-8")
    varying = [key for key in keys if len({repr(row.get("set", {}).get(key)) for row in rows}) > 1]
    condition = _condition(rows[shown[0]], varying)
    cards = [
        *_speed(rows, colours, varying),
        *_distributions(rows, details, shown, colours, condition),
        *[_life(arm, timeline, condition) for arm, timeline in timelines.items()],
        *_costs(rows, colours, varying),
        _table(rows, keys),
    ]
    said = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{said}</title><link rel="icon" href="data:,"><style>{style}</style></head>\n'
        f"<body><header><h1>{said}</h1><p>Simulated by pilotfish-sim: the shipped cores, policy and scheduler; link, "
        f"drafter, step and text are models.</p></header>\n<main>{''.join(cards)}</main></body></html>\n"
    )


def _speed(rows: Sequence[Row], colours: Mapping[str, int], keys: Sequence[str]) -> list[str]:
    """Rate against round trip, a line for each arm and setting of the other keys; bars where it does not vary."""
    if len({row["rtt_ms"] for row in rows}) < 2:
        values = [(_name(row, keys), row["tokens_per_s"], colours[row["arm"]]) for row in rows[:MOST_BARS]]
        return [_card("Tokens a second", bars(values, unit="tokens/s", title="tokens a second"))]
    others = [key for key in keys if key not in ("arm", "link.rtt_ms", "link")]
    charts: dict[tuple[str, ...], dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        group = tuple(f"{key} {row.get('set', {}).get(key)}" for key in others)
        charts.setdefault(group, {}).setdefault(row["arm"], []).append((row["rtt_ms"], row["tokens_per_s"]))
    cards = []
    for group, by_arm in list(charts.items())[:6]:
        series = [Line(arm, sorted(points), colours[arm], dots=True) for arm, points in by_arm.items()]
        chart = lines(series, label_x="round trip, ms", label_y="tokens/s", title="rate against round trip")
        cards.append(_card(f"Rate against round trip{': ' if group else ''}{', '.join(group)}", chart))
    return cards


def _distributions(
    rows: Sequence[Row], details: Sequence[Detail], shown: Sequence[int], colours: Mapping[str, int], condition: str
) -> list[str]:
    cards = []
    for title, name in (("Time to first token", "ttft_ms"), ("Time per output token", "tpot_ms")):
        series = [
            Line(rows[place]["arm"], _cdf(getattr(details[place], name)), colours[rows[place]["arm"]], steps=True)
            for place in shown
        ]
        chart = lines(series, label_x="milliseconds", label_y="share of answers", title=f"CDF of {name}", most_y=1.0)
        cards.append(_card(f"{title}, all answers{condition}", chart))
    return cards


def _cdf(values: Sequence[float]) -> list[tuple[float, float]]:
    ordered = sorted(values)
    every = max(1, len(ordered) // MOST_POINTS)
    points = [(value, (place + 1) / len(ordered)) for place, value in enumerate(ordered)]
    return [(ordered[0], 0.0), *points[::every], points[-1]]


def _life(arm: str, timeline: Timeline, condition: str) -> str:
    """One answer: how far it was drafted and committed over time."""
    until = next((at for at, place in timeline.committed if place >= SHOWN_TOKENS), timeline.committed[-1][0])

    def early(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [point for point in points if point[0] <= until]

    series = [Line("committed", early(timeline.committed), 3, steps=True)]
    marks: list[Mark] = []
    names = ""
    if timeline.sent:
        series.insert(0, Line("drafted on the device", early(timeline.drafted), 1, steps=True))
        marks = [Mark(at, place, "sent", f"drafts sent up to {place:g}") for at, place in early(timeline.sent)]
        marks += [Mark(at, place, "rollback", f"rolled back from {place:g}") for at, place in early(timeline.rollbacks)]
        names = (
            '<ul class="legend"><li><span class="key sent"></span>sent</li>'
            '<li><span class="key rollback"></span>rolled back from</li></ul>'
        )
    chart = lines(
        series, label_x="ms since the question", label_y="output position", marks=marks, title=f"{arm}: one answer"
    )
    return _card(f"One answer, {arm}{condition}", chart + names)


def _costs(rows: Sequence[Row], colours: Mapping[str, int], keys: Sequence[str]) -> list[str]:
    cards = []
    for title, name, unit in (
        ("Cost of a million tokens (GPU hours and egress, idle time too)", "usd_per_million_tokens", "$"),
        ("Energy of the device and its radio", "device_j_per_token", "J a token"),
        ("The target's time for a token", "target_ms_per_token", "ms"),
    ):
        values = [(_name(row, keys), row[name], colours[row["arm"]]) for row in rows[:MOST_BARS] if row.get(name)]
        if values:
            note = f"<p>the first {MOST_BARS} of {len(rows)} rows</p>" if len(rows) > MOST_BARS else ""
            cards.append(_card(title, bars(values, unit=unit, title=title) + note))
    return cards


def _table(rows: Sequence[Row], keys: Sequence[str]) -> str:
    columns = columns_of(rows, keys)
    head = "".join(f"<th>{html.escape(title)}</th>" for title, _ in columns)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(show(row))}</td>' for _, show in columns)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<section class="wide"><h2>All rows</h2>{table}<pre>{html.escape(LEGEND)}</pre></section>'


def _name(row: Row, keys: Sequence[str]) -> str:
    return ", ".join(
        [row["arm"], *(f"{row['set'][key]}" for key in keys if key != "arm" and key in row.get("set", {}))]
    )


def _condition(row: Row, keys: Sequence[str]) -> str:
    values = [f"{key} {row['set'][key]}" for key in keys if key != "arm" and key in row.get("set", {})]
    return f" ({', '.join(values)})" if values else ""


def _card(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def shown_rows(rows: Sequence[Row]) -> list[int]:
    """Which rows' answers are shown: one of each arm, all of the same condition, of those the middle one."""
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(repr({**row.get("set", {}), "arm": None}), []).append(place)
    most = max(len(places) for places in groups.values())
    full = [places for places in groups.values() if len(places) == most]
    return full[len(full) // 2]
