#!/usr/bin/env python3
"""Draws a trace as an SVG: a row for each span, a bar from its start to its end.

    tests/it/python/otlp_receiver.py --listen 127.0.0.1:4317 --out spans.jsonl   # and have a blob traced
    scripts/waterfall.py spans.jsonl TRACE_ID > docs/blob-trace.svg

Reads what the receiver of the tests writes. A gap in which nothing happens, such as a blob's wait in the queue, is cut to a
tenth of the width.
"""

import json
import sys
from html import escape

WIDTH, LABEL, ROW, TOP = 1000, 470, 26, 34
COLOURS = {"blobferry": "#3b6fb6", "source": "#4d9a5b", "destination": "#b5722c"}


def ordered(spans):
    """Parents before children, children by their start."""
    known = {span["span"] for span in spans}
    children = {}
    for span in spans:
        children.setdefault(span["parent"] if span["parent"] in known else "", []).append(span)
    rows = []

    def walk(parent, depth):
        for span in sorted(children.get(parent, []), key=lambda one: one["start"]):
            rows.append((depth, span))
            walk(span["span"], depth + 1)

    walk("", 0)
    return rows


def scale(spans):
    """Maps a time to 0..1, with long gaps cut short."""
    edges = sorted({edge for span in spans for edge in (span["start"], span["end"])})
    busy = [any(s["start"] <= a and s["end"] >= b for s in spans) for a, b in zip(edges, edges[1:])]
    total = sum(b - a for a, b, is_busy in zip(edges, edges[1:], busy) if is_busy) or 1
    at, places = 0.0, {edges[0]: 0.0}
    for a, b, is_busy in zip(edges, edges[1:], busy):
        at += (b - a) if is_busy else min(b - a, total / 10)
        places[b] = at
    return {edge: place / (at or 1) for edge, place in places.items()}


def duration(nanos):
    return f"{nanos / 1e6:.2f} ms" if nanos < 1e9 else f"{nanos / 1e9:.2f} s"


def main():
    path, trace = sys.argv[1:3]
    with open(path, encoding="utf-8") as lines:
        spans = [span for span in map(json.loads, lines) if span["trace"] == trace]
    rows, places = ordered(spans), scale(spans)
    height = TOP + ROW * len(rows) + 12
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for index, (service, colour) in enumerate(COLOURS.items()):
        x = 12 + 130 * index
        out.append(f'<rect x="{x}" y="12" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{x + 15}" y="21" fill="#333">{service}</text>')
    for row, (depth, span) in enumerate(rows):
        y = TOP + ROW * row
        name = span["name"].removeprefix("blobferry.v1.")
        kind = {2: "server", 3: "client", 4: "producer", 5: "consumer"}.get(span["kind"], "")
        start, end = (LABEL + (WIDTH - LABEL - 90) * places[span[edge]] for edge in ("start", "end"))
        if row % 2 == 0:
            out.append(f'<rect x="0" y="{y}" width="{WIDTH}" height="{ROW}" fill="#f4f5f7"/>')
        out.append(f'<text x="{12 + 18 * depth}" y="{y + 17}" fill="#222">{escape(name)}'
                   f'<tspan dx="6" fill="#888">{kind}</tspan></text>')
        colour = "#c0392b" if span["status"] == 2 else COLOURS.get(span["service"], "#777")
        out.append(f'<rect x="{start:.1f}" y="{y + 6}" width="{max(end - start, 2):.1f}" height="14" rx="2" fill="{colour}"/>')
        out.append(f'<text x="{end + 6:.1f}" y="{y + 17}" fill="#555">{duration(span["end"] - span["start"])}</text>')
    print("\n".join(out + ["</svg>"]))


if __name__ == "__main__":
    main()
