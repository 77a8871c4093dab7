#!/usr/bin/env python3
"""Draws the peers of docs/benchmarks.md side by side: docs/plots/peers.svg.

    benches/peers/plot.py            draws the plot from the tables under "Peers"
    benches/peers/plot.py --check    fails if the plot does not show what the tables say

It needs nothing but Python. The drawing has no background and colours of medium lightness, so that
light and dark pages can show it.
"""

import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "docs/benchmarks.md"
PLOT = ROOT / "docs/plots/peers.svg"

TEXT, GRID = "#7d8590", "#7d859055"
TIMES = [("first request, 1 worker", "first request", "#d9822b"), ("replay, 1 worker", "replay", "#2f81f7")]
RUNS = "200 concurrent duplicates"
WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 760, 215, 45, 58, 46, 13


def rows_under_peers():
    """Each table row under the heading: its first cell, and the others by their columns' names."""
    section = TABLES.read_text().split("\n## Peers\n")[1].split("\n## ")[0]
    columns, rows = [], {}
    for line in section.splitlines():
        if not line.startswith("|"):
            columns = []
            continue
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not columns:
            columns = cells
        elif set(first) != {"-"}:
            rows[first] = dict(zip(columns, cells))
    return rows


def drawing():
    rows = rows_under_peers()
    peers = list(rows[RUNS])
    bare = rows[TIMES[0][0]]["bare"]
    longest = max(float(rows[row][peer]) for row, _, _ in TIMES for peer in peers)
    bottom = TOP + ROW * len(peers)
    title = f"Time of a request, in multiples of the bare router's {bare}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 28}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<text x="{LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
    ]

    def x(multiple):
        return LEFT + multiple / longest * (WIDTH - LEFT - RIGHT)

    at = LEFT
    for _, name, colour in TIMES:
        parts.append(f'<rect x="{at}" y="28" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 14}" y="37">{name}</text>')
        at += 30 + 7 * len(name)
    for multiple in range(int(longest) + 1):
        weight = 1.5 if multiple == 1 else 1
        parts.append(
            f'<line x1="{x(multiple):.1f}" y1="{TOP - 8}" x2="{x(multiple):.1f}" y2="{bottom}" '
            f'stroke="{TEXT if multiple == 1 else GRID}" stroke-width="{weight}"/>'
        )
        parts.append(f'<text x="{x(multiple):.1f}" y="{bottom + 16}" text-anchor="middle">{multiple}</text>')
    for number, peer in enumerate(peers):
        top = TOP + ROW * number
        weight = "bold" if number == 0 else "normal"
        runs = rows[RUNS][peer]
        parts.append(f'<text x="{LEFT - 10}" y="{top + 12}" text-anchor="end" font-weight="{weight}">{escape(peer)}</text>')
        parts.append(
            f'<text x="{LEFT - 10}" y="{top + 27}" text-anchor="end" font-size="11">200 duplicates: {escape(runs)}</text>'
        )
        for place, (row, _, colour) in enumerate(TIMES):
            multiple = rows[row][peer]
            y = top + place * (BAR + 3)
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{x(float(multiple)) - LEFT:.1f}" height="{BAR}" fill="{colour}"/>'
            )
            parts.append(f'<text x="{x(float(multiple)) + 5:.1f}" y="{y + 11}">{multiple}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if sys.argv[1:] == ["--check"]:
    if not PLOT.exists() or PLOT.read_text() != drawing():
        sys.exit(f"{PLOT.relative_to(ROOT)} does not match {TABLES.relative_to(ROOT)}; run benches/peers/plot.py")
elif sys.argv[1:]:
    sys.exit(__doc__)
else:
    PLOT.write_text(drawing())
