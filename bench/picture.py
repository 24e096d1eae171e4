"""One self-contained SVG of a benchmark's report, to be read without the text around it.

    python bench/picture.py REPORT.json PICTURE.svg

A report is what `sweep` and `race` write:

    {"title": ..., "subtitle": ..., "facts": {name: value}, "skipped": [{"name": ..., "reason": ...}],
     "charts": [{"kind": "lines", "title": ..., "x": label, "unit": "bytes" or "", "series": [
                    {"name": ..., "roofline": bool, "points": [{"x":, "median":, "low":, "high":}]}]},
                {"kind": "bars", "title": ..., "roofline": GiB/s or null, "rows": [
                    {"name": ..., "ours": bool, "median":, "low":, "high":, "note": ...}]}]}

All heights are GiB/s; low and high are the slowest and the fastest round.
"""

import json
import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, MARGIN = 1120, 28
INK, FAINT, GRID = "#1b1b1b", "#5f5f5f", "#e3e3e3"
# Okabe and Ito's, told apart by the colour-blind; each has a mark of its own besides.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]
ROOFLINE = "#000000"
OURS, OTHERS = "#0072b2", "#b9b9b9"


def text(x, y, words, size=13, anchor="start", colour=INK, weight="normal", turn=None):
    turned = "" if turn is None else f' transform="rotate({turn} {x:.1f} {y:.1f})"'
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
            f'font-weight="{weight}"{turned}>{escape(str(words))}</text>')


def line(x1, y1, x2, y2, colour=INK, width=1.0, dash=""):
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"{dashed}/>')


def mark(kind, x, y, colour):
    if kind % 3 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
    if kind % 3 == 1:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>'
    return f'<path d="M{x - 5:.1f} {y + 4:.1f} L{x + 5:.1f} {y + 4:.1f} L{x:.1f} {y - 5:.1f} Z" fill="{colour}"/>'


def nice_ticks(top):
    """0 to at least `top`, in four to seven steps of 1, 2 or 5 times a power of ten."""
    top = top or 1.0
    step = 10 ** math.floor(math.log10(top / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if top / (step * factor) <= 6)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def number(value):
    return f"{value:.10g}"


def size_words(value, unit):
    if unit != "bytes":
        return number(value)
    for name, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= factor:
            return f"{value / factor:.4g} {name}"
    return f"{value:g} B"


def legend(series, left, y, width):
    """(svg, height): entries from left to right, in as many rows as they need, each with the mark of its line."""
    out, x, rows = [], left, 1
    for index, one in enumerate(series):
        wide = 28 + 6.4 * len(one["name"]) + 16
        if x > left and x + wide > left + width:
            x, y, rows = left, y + 18, rows + 1
        colour = ROOFLINE if one["roofline"] else COLOURS[index % len(COLOURS)]
        out.append(line(x, y - 4, x + 22, y - 4, colour, 2, "6 4" if one["roofline"] else ""))
        if not one["roofline"]:
            out.append(mark(index, x + 11, y - 4, colour))
        out.append(text(x + 28, y, one["name"], 12))
        x += wide
    return out, 18 * rows


def lines_chart(chart, left, top, width, height):
    series = [one for one in chart["series"] if one["points"]]
    entries, taken = legend(series, left, top + 38, width)
    out = [text(left, top + 16, chart["title"], 15, weight="bold"), *entries]
    x0, x1, y0, y1 = left + 46, left + width - 12, top + height - 44, top + 38 + taken
    values = sorted({point["x"] for one in series for point in one["points"]})
    ticks = nice_ticks(max((point["high"] for one in series for point in one["points"]), default=1))

    def across(value):  # each value is about a power of two of the one before
        low, high = math.log2(values[0]), math.log2(values[-1])
        share = 0.5 if high == low else (math.log2(value) - low) / (high - low)
        return x0 + 16 + share * (x1 - x0 - 32)

    def up(rate):
        return y0 - (y0 - y1) * rate / ticks[-1]

    for tick in ticks:
        out += [line(x0, up(tick), x1, up(tick), GRID), text(x0 - 7, up(tick) + 4, number(tick), 11, "end", FAINT)]
    out += [text(left + 10, (y0 + y1) / 2, "GiB/s", 12, "middle", FAINT, turn=-90), line(x0, y0, x1, y0)]
    for value in values:
        out += [line(across(value), y0, across(value), y0 + 4),
                text(across(value), y0 + 18, size_words(value, chart["unit"]), 11, "middle", FAINT)]
    out.append(text((x0 + x1) / 2, y0 + 36, chart["x"], 12, "middle", FAINT))
    for index, one in enumerate(series):
        colour = ROOFLINE if one["roofline"] else COLOURS[index % len(COLOURS)]
        points = sorted(one["points"], key=lambda point: point["x"])
        path = " ".join(f"{'ML'[i > 0]}{across(p['x']):.1f} {up(p['median']):.1f}" for i, p in enumerate(points))
        dash = ' stroke-dasharray="6 4"' if one["roofline"] else ""
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for point in points:
            x = across(point["x"])
            out.append(line(x, up(point["low"]), x, up(point["high"]), colour, 1.2))
            if not one["roofline"]:
                out.append(mark(index, x, up(point["median"]), colour))
    return out


def bars_height(chart):
    return 66 + 30 * len(chart["rows"]) + 40


def bars_chart(chart, left, top, width):
    rows = chart["rows"]
    out = [text(left, top + 16, chart["title"], 15, weight="bold")]
    x0, x1, y1 = left + 290, left + width - 210, top + 44
    y0 = y1 + 30 * len(rows)
    ticks = nice_ticks(max([row["high"] for row in rows] + [chart["roofline"] or 0]))

    def across(rate):
        return x0 + (x1 - x0) * rate / ticks[-1]

    for tick in ticks:
        out += [line(across(tick), y1, across(tick), y0, GRID), text(across(tick), y0 + 18, number(tick), 11, "middle", FAINT)]
    out.append(text((x0 + x1) / 2, y0 + 36, "GiB/s", 12, "middle", FAINT))
    for index, row in enumerate(rows):
        y = y1 + 30 * index
        out.append(text(x0 - 10, y + 20, row["name"], 13, "end", weight="bold" if row["ours"] else "normal"))
        out.append(f'<rect x="{x0:.1f}" y="{y + 5:.1f}" width="{across(row["median"]) - x0:.1f}" height="20" '
                   f'fill="{OURS if row["ours"] else OTHERS}"/>')
        out.append(line(across(row["low"]), y + 15, across(row["high"]), y + 15, INK, 1.4))
        out.append(text(x1 + 14, y + 19, row["note"], 12))
    if chart["roofline"]:
        x = across(chart["roofline"])
        out += [line(x, y1 - 8, x, y0, ROOFLINE, 1.6, "6 4"),
                text(x, y1 - 12, f"roofline: fio {chart['roofline']:.2f} GiB/s", 12, "middle")]
    out.append(line(x0, y1, x0, y0))
    return out


def wrapped(words, limit):
    lines, current = [], ""
    for word in words.split(" "):
        if current and len(current) + 1 + len(word) > limit:
            lines.append(current)
            current = word
        else:
            current = f"{current} {word}".strip()
    return [*lines, current]


def draw(report):
    """The whole picture, text of an SVG document."""
    out = [text(MARGIN, 40, report["title"], 22, weight="bold")]
    top = 50
    facts = " · ".join(f"{name} {value}" for name, value in report["facts"].items())
    for words, size in ((report["subtitle"], 13), (facts, 12)):
        for part in wrapped(words, 165):
            top += 19
            out.append(text(MARGIN, top, part, size, colour=FAINT))
    top += 24
    half = (WIDTH - 3 * MARGIN) / 2
    column = 0
    for chart in report["charts"]:
        if chart["kind"] == "bars":
            top += 324 if column else 0
            column = 0
            out += bars_chart(chart, MARGIN, top, WIDTH - 2 * MARGIN)
            top += bars_height(chart) + 24
        else:  # two beside each other
            out += lines_chart(chart, MARGIN + column * (half + MARGIN), top, half, 300)
            column = 1 - column
            top += 0 if column else 324
    top += 324 if column else 0
    for skipped in report["skipped"]:
        for part in wrapped(f"Not run: {skipped['name']}: {skipped['reason']}", 165):
            out.append(text(MARGIN, top, part, 12, colour=FAINT))
            top += 18
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 12:.0f}" width="{WIDTH}" '
            f'font-family="Helvetica, Arial, sans-serif"><title>{escape(report["title"])}</title>'
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(out) + "\n</svg>\n")


def write(report, stem):
    """Both files of a report: `stem`.json and `stem`.svg."""
    stem = Path(stem)
    for suffix, contents in ((".json", json.dumps(report, indent=1)), (".svg", draw(report))):
        stem.with_name(stem.name + suffix).write_text(contents)


def main():
    if len(sys.argv) != 3:
        print("usage: picture.py REPORT.json PICTURE.svg", file=sys.stderr)
        return 2
    Path(sys.argv[2]).write_text(draw(json.loads(Path(sys.argv[1]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
