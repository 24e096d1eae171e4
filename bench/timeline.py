"""A save or a load as a picture: an SVG of a trace that SAFERING_TRACE has left, to be read alone, by day and by night.

    python bench/timeline.py TRACE.json PICTURE.svg [--title WORDS]

Shown is the last save of the trace, from its plan to its commit, else the last load, of all ranks that took part; Perfetto
shows all of it (docs/operations.md).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP = 960, 112, 24, 92
CALL, COPY, LANE, SYNC, GAP = 18, 12, 6, 12, 7

# Day and night; Okabe and Ito's colours, told apart by the colour-blind. Who shows the picture picks by the reader's scheme.
STYLE = """
svg { --paper: #ffffff; --ink: #1b1b1b; --faint: #5f5f5f; --grid: #e6e6e6; --band: #f6f6f6;
      --call: #c9d7e6; --copy: #009e73; --disk: #0072b2; --cached: #56b4e9; --sync: #d55e00; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --ink: #e6edf3; --faint: #9aa4af; --grid: #262c34; --band: #151b23;
        --call: #2f4358; --copy: #2fbf95; --disk: #3d9be0; --cached: #8fcdf2; --sync: #f0883e; }
}
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); font-size: 12px; }
.faint { fill: var(--faint); }
"""

# What a trace's events are called -> what they are here.
COPIES = {"copy in", "copy out"}
TRANSFERS = {"write", "read"}
SYNCS = {"fsync", "sync directory", "rename", "make directory", "allocate"}
#: Transfers below this go through the page cache, as edges of a rank's bytes do.
BLOCK = 4096


@dataclass
class Event:
    name: str
    begin: float  # microseconds
    end: float
    bytes: int = 0


@dataclass
class Process:
    """What one rank did; events in the order of their beginnings."""

    name: str
    calls: list[Event] = field(default_factory=list)
    copies: list[Event] = field(default_factory=list)
    transfers: list[Event] = field(default_factory=list)
    syncs: list[Event] = field(default_factory=list)

    def events(self) -> list[Event]:
        return self.calls + self.copies + self.transfers + self.syncs


def read_events(text: str) -> dict[int, list[Event]]:
    """By process. The file may lack its closing bracket, as one that a process is still writing does."""
    text = text.rstrip().rstrip(",")
    found = json.loads(text if text.endswith("]") else text + "]")
    begun: dict[tuple, dict] = {}
    out: dict[int, list[Event]] = {}
    for event in found:
        pid, name, args = event.get("pid"), event.get("name"), event.get("args", {})
        if event["ph"] == "X":
            out.setdefault(pid, []).append(Event(name, event["ts"], event["ts"] + event["dur"], args.get("bytes", 0)))
        elif event["ph"] == "b":
            begun[pid, event["id"]] = event
        elif event["ph"] == "e" and (start := begun.pop((pid, event["id"]), None)):
            size = start.get("args", {}).get("bytes", 0)
            out.setdefault(pid, []).append(Event(start["name"], start["ts"], event["ts"], size))
    return {pid: sorted(events, key=lambda one: one.begin) for pid, events in out.items()}


def is_call(name: str) -> bool:
    return name in ("prepare_global_plan", "read_metadata", "read_data") or name.startswith(("write_data", "read_data", "finish"))


def last_job(events: dict[int, list[Event]]) -> tuple[float, float, str]:
    """Where it begins and ends, and what it is."""
    everything = [event for some in events.values() for event in some]
    commits = [event for event in everything if event.name.startswith("finish")]
    if commits:
        end = max(commits, key=lambda one: one.end)
        plans = [event for event in everything if event.name == "prepare_global_plan" and event.begin <= end.begin]
        begin = max(plans, key=lambda one: one.begin).begin if plans else min(event.begin for event in everything)
        return begin, end.end, "save"
    loads = [event for event in everything if event.name.startswith("read_data")]
    if not loads:
        sys.exit("timeline: the trace holds neither a whole save nor a whole load")
    last = max(loads, key=lambda one: one.end)
    return last.begin, last.end, "load"


def processes_of(events: dict[int, list[Event]], begin: float, end: float) -> list[Process]:
    out = []
    for some in events.values():
        inside = [event for event in some if event.begin < end and event.end > begin]
        calls = [event for event in inside if is_call(event.name)]
        ranks = sorted({int(event.name.rpartition(" ")[2]) for event in calls if " of rank " in event.name})
        if not calls:
            continue
        name = f"rank {', '.join(map(str, ranks))}" if ranks else "one process"
        out.append(Process(
            name,
            calls,
            [event for event in inside if event.name in COPIES],
            [event for event in inside if event.name in TRANSFERS],
            [event for event in inside if event.name in SYNCS],
        ))
    return sorted(out, key=lambda one: one.name)


def lanes_of(events: list[Event]) -> list[list[Event]]:
    """As few rows as there are events at a time."""
    lanes: list[list[Event]] = []
    for event in events:
        free = next((lane for lane in lanes if lane[-1].end <= event.begin), None)
        if free is None:
            lanes.append([event])
        else:
            free.append(event)
    return lanes


def text(x: float, y: float, words: str, anchor: str = "start", style: str = "", size: int = 12) -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="font-size:{size}px{style}">{escape(words)}</text>')


def faint(x: float, y: float, words: str, anchor: str = "start", size: int = 11) -> str:
    return text(x, y, words, anchor, ";fill:var(--faint)", size)


class Picture:
    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self.parts: list[str] = []
        self.y = float(TOP)

    def across(self, at: float) -> float:
        share = (min(max(at, self.begin), self.end) - self.begin) / (self.end - self.begin)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def bar(self, event: Event, y: float, height: float, colour: str) -> float:
        """Seen however short; gives its width."""
        x = self.across(event.begin)
        width = max(self.across(event.end) - x, 1.2)
        size = f", {event.bytes / 2**20:.2f} MiB" if event.bytes else ""
        tip = escape(f"{event.name}: {(event.end - event.begin) / 1000:.2f} ms{size}")
        # A hair less, so that those that follow each other are told apart.
        self.parts.append(f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width - 0.4, 1):.2f}" height="{height}" rx="1" '
                          f'fill="var(--{colour})"><title>{tip}</title></rect>')
        return width

    def row(self, label: str, lanes: list[list[Event]], height: float, colour) -> None:
        if not lanes:
            return
        self.parts.append(faint(LEFT - 8, self.y + len(lanes) * height / 2 + 4, label, "end"))
        for lane in lanes:
            for event in lane:
                self.bar(event, self.y, height - 1, colour(event))
            self.y += height
        self.y += GAP

    def calls(self, events: list[Event]) -> None:
        """A row each for those of ranks that are threads of one process."""
        lanes = lanes_of(events)
        for number, lane in enumerate(lanes):
            if number == 0:
                self.parts.append(faint(LEFT - 8, self.y + 13, "calls", "end"))
            for event in lane:
                width = self.bar(event, self.y, CALL, "call")
                words = event.name.partition(":")[0]
                if len(lanes) == 1:
                    words = words.partition(" of rank")[0]
                x = self.across(event.begin)
                if width > 6.2 * len(words) + 8:
                    self.parts.append(text(x + 5, self.y + 13, words, size=11))
                elif x + 6 * len(words) > WIDTH - RIGHT:
                    self.parts.append(faint(WIDTH - RIGHT, self.y - 4, words, "end", 10))
                else:
                    self.parts.append(faint(x, self.y - 4, words, size=10))
            self.y += CALL + 2
        self.y += GAP - 2

    def marks(self, events: list[Event]) -> None:
        """Named where there is room; those that stand side by side are named together."""
        if not events:
            return
        self.parts.append(faint(LEFT - 8, self.y + SYNC - 2, "durable", "end"))
        for event in events:
            self.bar(event, self.y, SYNC, "sync")
        groups: list[tuple[float, list[str]]] = []
        for event in events:
            x = self.across(event.begin)
            if groups and x - groups[-1][0] < 90:
                if event.name not in groups[-1][1]:
                    groups[-1][1].append(event.name)
            else:
                groups.append((x, [event.name]))
        self.y += SYNC + 12
        for x, names in groups:
            words = ", ".join(names)
            late = x + 5.6 * len(words) > WIDTH - RIGHT
            self.parts.append(faint(WIDTH - RIGHT if late else x, self.y, words, "end" if late else "start", 10))
        self.y += GAP

    def process(self, one: Process) -> None:
        top, place = self.y, len(self.parts)
        self.y += 22
        self.parts.append(text(12, self.y - 4, one.name, style=";font-weight:600", size=13))
        self.calls(one.calls)
        self.row("copies", lanes_of(one.copies), COPY, lambda event: "copy")
        self.row("disk", lanes_of(one.transfers), LANE, lambda event: "disk" if event.bytes >= BLOCK else "cached")
        self.marks(one.syncs)
        self.parts.insert(place, f'<rect x="4" y="{top:.1f}" width="{WIDTH - 8}" height="{self.y - top:.1f}" rx="5" '
                                 'fill="var(--band)"/>')
        self.y += 8

    def grid(self) -> list[str]:
        total = (self.end - self.begin) / 1000
        step = 10 ** math.floor(math.log10(total / 4))
        step = next(step * factor for factor in (1, 2, 5, 10) if total / (step * factor) <= 8)
        out, at = [], 0.0
        while at <= total:
            x = self.across(self.begin + at * 1000)
            out.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{self.y:.1f}" stroke="var(--grid)"/>')
            out.append(faint(x, self.y + 16, f"{at:g}" + (" ms" if at == 0 else ""), "middle"))
            at += step
        return out


def legend(y: float) -> list[str]:
    out, x = [], 12.0
    for colour, words in (("call", "what the library was called for"), ("copy", "copy into a buffer, with the digest"),
                          ("disk", "request to the disk"), ("cached", "edge of a block"),
                          ("sync", "allocate, fsync, rename")):
        out.append(f'<rect x="{x}" y="{y - 9}" width="12" height="10" rx="1.5" fill="var(--{colour})"/>')
        out.append(faint(x + 17, y, words))
        x += 17 + 5.7 * len(words) + 20
    return out


def draw(trace: str, title: str | None) -> str:
    events = read_events(trace)
    begin, end, what = last_job(events)
    processes = processes_of(events, begin, end)
    moved = sum(event.bytes for one in processes for event in one.transfers)
    seconds = (end - begin) / 1e6
    names = {event.name for one in processes for event in one.calls if " of rank " in event.name}
    ranks = len(names) or len(processes)
    many = f"{ranks} ranks" if ranks > 1 else "one rank"
    picture = Picture(begin, end)
    for one in processes:
        picture.process(one)
    height = picture.y + 28
    head = title or f"A {what} of {moved / 2**20:.0f} MiB by {many}"
    after = "from the plan to the commit, durable" if what == "save" else "cold"
    sub = f"{seconds * 1000:.0f} ms, {moved / 2**30 / seconds:.2f} GiB/s {after}; milliseconds from left to right"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" '
        f'role="img" aria-label="{escape(head)}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="var(--paper)"/>',
        text(12, 28, head, style=";font-weight:600", size=18),
        faint(12, 48, sub, size=12),
        *legend(72),
    ]
    # Bands, lines, and what happened, one on the other.
    bands = [part for part in picture.parts if "var(--band)" in part]
    return "\n".join(parts + bands + picture.grid() + [part for part in picture.parts if part not in bands] + ["</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--title")
    arguments = parser.parse_args()
    try:
        trace = arguments.trace.read_text()
        arguments.picture.write_text(draw(trace, arguments.title))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"timeline: {arguments.trace}: {error}")


if __name__ == "__main__":
    main()
