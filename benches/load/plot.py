"""Draws the results of load.py as SVG for docs/benchmarks.md: RESULTS DIRECTORY.

It needs nothing but Python. The drawings have no background and colours of medium lightness, so
that light and dark pages can show them.
"""

import json
import math
import statistics
import sys
from html import escape
from pathlib import Path

TEXT = "#7d8590"
GRID = "#7d859055"
COLOURS = {"bare": "#8b949e", "first": "#d9822b", "replay": "#2f81f7"}
NAMES = {"bare": "without key", "first": "first request", "replay": "replay"}
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 75, 10, 50, 40


class Drawing:
    def __init__(self, title, height):
        self.height = height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}" role="img">',
            f"<title>{escape(title)}</title>",
        ]
        self.text(LEFT, 18, title, weight="bold")

    def text(self, x, y, text, anchor="start", weight="normal"):
        text = escape(text)
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{text}</text>')

    def line(self, x1, y1, x2, y2, colour=GRID, width=1.0):
        at = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self.parts.append(f'<line {at} stroke="{colour}" stroke-width="{width}"/>')

    def bar(self, x, y, width, height, colour):
        at = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect {at} fill="{colour}"/>')

    def path(self, points, colour):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')

    def legend(self, kinds):
        x = LEFT
        for kind in kinds:
            self.bar(x, 28, 10, 10, COLOURS[kind])
            self.text(x + 14, 37, NAMES[kind])
            x += 30 + 7 * len(NAMES[kind])

    def write(self, path):
        path.write_text("\n".join([*self.parts, "</svg>"]) + "\n")


def median(slices, what):
    return statistics.median(one[what] for one in slices)


def ratio(slices, base):
    return statistics.median(one["per_second"] / other["per_second"] for one, other in zip(slices, base))


def throughput(results):
    """Bars up or down from 1. Each line doubles the one below, as replays may not need a slow disk."""
    drawing = Drawing("Requests per second, as multiples of those without a key", 300)
    kinds = ["first", "replay"]
    drawing.legend(kinds)
    shares = {
        (store, kind): ratio(result["kept"][kind], result["kept"]["bare"])
        for store, result in results.items()
        for kind in kinds
    }
    low = min(-1, math.floor(math.log2(min(shares.values()))))
    high = max(1, math.ceil(math.log2(max(shares.values()))))
    bottom = drawing.height - BOTTOM

    def y(value):
        return bottom - (math.log2(value) - low) / (high - low) * (bottom - TOP)

    for power in range(low, high + 1):
        drawing.line(LEFT, y(2**power), WIDTH - RIGHT, y(2**power))
        drawing.text(LEFT - 6, y(2**power) + 4, f"{2.0**power:g}", "end")
    drawing.line(LEFT, y(1), WIDTH - RIGHT, y(1), TEXT, 1.5)
    group = (WIDTH - LEFT - RIGHT) / len(results)
    for place, store in enumerate(results):
        middle = LEFT + group * (place + 0.5)
        drawing.text(middle, bottom + 20, store, "middle")
        for offset, kind in zip((-1, 0), kinds):
            share = shares[store, kind]
            x = middle + offset * 50 + (2 if offset == 0 else -2)
            drawing.bar(x, min(y(share), y(1)), 50, abs(y(share) - y(1)), COLOURS[kind])
            above = share >= 1
            drawing.text(x + 25, y(share) + (-5 if above else 14), f"{share:.2f}", "middle")
    return drawing


def scale(values, bottom, drawing):
    """Draws the lines of a logarithmic scale of whole decades of milliseconds. Returns the scale."""
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)

    def y(value):
        return bottom - (math.log10(value) - low) / (high - low) * (bottom - TOP)

    for decade in range(low, high + 1):
        drawing.line(LEFT, y(10**decade), WIDTH - RIGHT, y(10**decade))
        drawing.text(LEFT - 6, y(10**decade) + 4, f"{10.0**decade:g} ms", "end")
    return y


def latency(results):
    drawing = Drawing("How long requests take: p50, p99 and p99.9", 320)
    kinds = ["bare", "first", "replay"]
    drawing.legend(kinds)
    marks = ["p50", "p99", "p999"]
    values = {
        (store, kind, mark): max(median(result["kept"][kind], mark), 1) / 1000
        for store, result in results.items()
        for kind in kinds
        for mark in marks
    }
    bottom = drawing.height - BOTTOM
    y = scale(values.values(), bottom, drawing)
    group = (WIDTH - LEFT - RIGHT) / len(results)
    for place, store in enumerate(results):
        middle = LEFT + group * (place + 0.5)
        drawing.text(middle, bottom + 20, store, "middle")
        for number, kind in enumerate(kinds):
            x = middle + (number - 1) * 40
            ends = [y(values[store, kind, mark]) for mark in marks]
            drawing.line(x, ends[0], x, ends[-1], COLOURS[kind], 2)
            for end, mark in zip(ends, marks):
                half = 10 if mark == "p50" else 6
                drawing.line(x - half, end, x + half, end, COLOURS[kind], 3)
    return drawing


def expiry(results):
    drawing = Drawing("p99.9 of each second while records of two seconds ago expire", 110 + 130 * len(results))
    kinds = ["bare", "first"]
    drawing.legend(kinds)
    top = TOP
    for store, result in results.items():
        slices = result["expiring"]
        values = [max(one["p999"], 1) / 1000 for kind in kinds for one in slices[kind]]
        low, high = math.log10(min(values)), math.log10(max(values))
        low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
        bottom = top + 105

        def y(value):
            return bottom - (math.log10(value) - low) / (high - low) * 90

        for decade in range(low, high + 1):
            drawing.line(LEFT, y(10**decade), WIDTH - RIGHT, y(10**decade))
            drawing.text(LEFT - 6, y(10**decade) + 4, f"{10.0**decade:g} ms", "end")
        drawing.text(WIDTH - RIGHT, top + 12, store, "end", "bold")
        for offset, kind in enumerate(kinds):
            step = (WIDTH - LEFT - RIGHT) / (2 * len(slices[kind]))
            points = [
                (LEFT + (2 * number + offset + 0.5) * step, y(max(one["p999"], 1) / 1000))
                for number, one in enumerate(slices[kind])
            ]
            drawing.path(points, COLOURS[kind])
        seconds = 2 * len(slices["bare"])
        drawing.text(LEFT, bottom + 16, "0 s")
        drawing.text(WIDTH - RIGHT, bottom + 16, f"{seconds} s", "end")
        top += 135
    return drawing


def main():
    results = json.loads(Path(sys.argv[1]).read_text())
    directory = Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    for draw in (throughput, latency, expiry):
        draw(results).write(directory / f"load-{draw.__name__}.svg")


main()
