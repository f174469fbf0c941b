"""Figures of a report: drawn once, saved as PNG and turned into SVG that a page can hold.

The SVG has no style attributes (a strict policy would drop them) and no fixed ink: the palette becomes CSS variables,
so that one drawing is readable on a light and a dark page. Colours are those of `qstar.evaluate.plots`; markers, line
styles or labels always carry the same distinction.
"""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qstar.evaluate.compare import Cell, Comparison
from qstar.evaluate.plots import (
    ASTAR_COLOUR,
    COLOURS,
    LINES,
    MARKERS,
    accuracy_figure,
    blank,
    coverage_figure,
    save_png,
)
from qstar.value.calibrate import Bin

VARIABLES = {
    "#000000": "var(--ink)",
    "#e69f00": "var(--amber)",
    "#56b4e9": "var(--sky)",
    "#009e73": "var(--green)",
    "#0072b2": "var(--blue)",
    "#cc79a7": "var(--pink)",
    "#d55e00": "var(--red)",
    "#dddddd": "var(--line)",
    "#999999": "var(--soft)",
    "#ffffff": "var(--card)",
}
"""What each colour of the drawings becomes on a page."""

OUTCOMES = {"solved": "#009E73", "policy": "#E69F00", "value": "#0072B2", "budget": "#CC79A7", "error": "#000000"}

SHAPES = dict(zip(MARKERS, "●■▼▲◆◀▶⬟✖⬢✚", strict=True)) | {"x": "✕"}
"""Markers of the drawings as characters."""

HOLLOW = dict(zip(MARKERS, "○□▽△◇◁▷⬠✖⬡✚", strict=True))
"""The same, not filled."""

SIZE = (5.0, 3.5)
"""Inches on a page; its text is then about as large as the page's on a phone."""

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"(?:(?P<style>italic|oblique) )?(?:(?P<weight>bold|\d{3}) )?(?P<size>[\d.]+)px")
_KEPT = re.compile(r"[a-z-]+")


@dataclass(frozen=True)
class Key:
    """An entry of a legend: colour as CSS; of a line also whether it is dashed and its marker as a character."""

    label: str
    colour: str
    dashed: bool
    marker: str


@dataclass(frozen=True)
class Drawing:
    """svg: inline SVG. keys: its legend. file: name of the PNG."""

    svg: str
    keys: tuple[Key, ...]
    file: str


def accuracy(comparison: Comparison, folder: Path, name: str) -> Drawing:
    """Accuracy against tokens with bands."""
    return _finish(accuracy_figure(comparison), folder, name)


def coverage(comparison: Comparison, folder: Path, name: str) -> Drawing:
    """Accuracy against coverage."""
    return _finish(coverage_figure(comparison), folder, name)


def reliability(curves: Mapping[str, Sequence[Bin]], folder: Path) -> Drawing:
    """Share correct against V on dev steps, one curve per run; the size of a point is the share of steps in it."""
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1, label="perfect")
    for number, (label, bins) in enumerate(curves.items()):
        total = sum(b.count for b in bins)
        line = {"color": _colour(number), "linestyle": LINES[number % len(LINES)], "label": label}
        axes.plot([b.prob for b in bins], [b.correct for b in bins], **line)
        sizes = [12 + 300 * b.count / total for b in bins]
        axes.scatter([b.prob for b in bins], [b.correct for b in bins], s=sizes, color=_colour(number), alpha=0.6)
    axes.set(xlabel="V", ylabel="share correct", xlim=(0, 1), ylim=(0, 1))
    return _finish(figure, folder, "reliability")


def depth(values: Mapping[str, Mapping[bool, Mapping[int, Sequence[float]]]], folder: Path) -> Drawing:
    """Q by depth of right and wrong traces: mean, and a band between the quartiles, for each run.

    values: run -> whether the trace is right -> depth -> Q of its traces.
    """
    import numpy as np

    figure, axes = _axes()
    for number, (run, kinds) in enumerate(values.items()):
        for right, by_depth in kinds.items():
            depths = sorted(by_depth)
            colour = "#0072B2" if right else "#D55E00"
            label = f"{run}: {'right' if right else 'wrong'}" if len(values) > 1 else "right" if right else "wrong"
            means = [float(np.mean(by_depth[d])) for d in depths]
            low, high = zip(*(np.quantile(by_depth[d], (0.25, 0.75)) for d in depths), strict=True)
            marker = "o" if right else "x"
            line = LINES[number % len(LINES)]
            axes.plot(depths, means, color=colour, marker=marker, linestyle=line, markersize=5, label=label)
            axes.fill_between(depths, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="steps written", ylabel="Q", ylim=(0, 1))
    return _finish(figure, folder, "q_by_depth")


def iterations(curves: Mapping[str, Sequence[float | None]], folder: Path) -> Drawing:
    """Accuracy by iteration, one curve per label; None where it was not measured."""
    figure, axes = _axes()
    for number, (label, values) in enumerate(curves.items()):
        style = {"color": _colour(number), "marker": MARKERS[number % len(MARKERS)], "label": label}
        known = [math.nan if value is None else value for value in values]
        axes.plot(range(1, len(values) + 1), known, linestyle=LINES[number % len(LINES)], markersize=5, **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="iteration", ylabel="accuracy", ylim=(0, None))
    return _finish(figure, folder, "iterations")


def funnel(counts: Mapping[str, Mapping[str, int]], folder: Path) -> Drawing:
    """Traces left after each stage of the selection, a bar per run."""
    figure, axes = _axes()
    stages = list(next(iter(counts.values())))
    height = 0.8 / len(counts)
    for number, (run, count) in enumerate(counts.items()):
        places = [place + (number - (len(counts) - 1) / 2) * height for place in range(len(stages))]
        found = [count[stage] for stage in stages]
        axes.barh(places, found, height=0.92 * height, color=_colour(number), label=run)
        for place, value in zip(places, found, strict=True):
            axes.annotate(f"{value:,}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(stages)), stages)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.16)
    axes.set_xlabel("traces")
    return _finish(figure, folder, "funnel")


def failures(rows: Mapping[str, Cell], folder: Path, name: str) -> Drawing:
    """Share of the problems by what decided them, a bar per row."""
    figure, axes = _axes(height=1.1 + 0.32 * len(rows))
    left = [0.0] * len(rows)
    for outcome, colour in OUTCOMES.items():
        shares = [cell.failures.get(outcome, 0) / cell.n for cell in rows.values()]
        if any(shares):
            axes.barh(
                range(len(rows)), shares, left=left, height=0.72, color=colour, edgecolor="#FFFFFF", label=outcome
            )
        for place, (start, share) in enumerate(zip(left, shares, strict=True)):
            if share >= 0.07:
                # On a page, white becomes the card's colour; this black stays.
                ink = "#111111" if outcome in ("policy", "budget") else "#FFFFFF"
                axes.text(
                    start + share / 2, place, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=9
                )
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlim=(0, 1), xlabel="share of problems (numbers: %)")
    return _finish(figure, folder, name)


def _colour(number: int) -> str:
    """The colour of a run."""
    return ("#0072B2", ASTAR_COLOUR, *COLOURS[1:3], COLOURS[3], COLOURS[5], COLOURS[0])[number % 7]


def _axes(height: float = SIZE[1]) -> tuple[Any, Any]:
    figure, axes = blank(SIZE[0], height)
    axes.set_axisbelow(True)
    return figure, axes


def _finish(figure: Any, folder: Path, name: str) -> Drawing:
    """Save a PNG with its legend, then the SVG with the legend left to the page."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": name, "svg.fonttype": "none"}):
        axes = figure.axes[0]
        if not figure.legends and len(axes.get_legend_handles_labels()[1]) > 1:
            figure.legend(loc="outside lower center", frameon=False, ncols=3)
        folder.mkdir(parents=True, exist_ok=True)
        save_png(figure, folder / f"{name}.png")
        keys = tuple(_key(handle, label) for handle, label in zip(*axes.get_legend_handles_labels(), strict=True))
        for legend in list(figure.legends):
            legend.remove()
        axes.set_title("")
        figure.set_size_inches(SIZE[0], min(SIZE[1], figure.get_figheight()))
        text = io.BytesIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawing(_inline(text.getvalue(), name), keys if len(keys) > 1 else (), f"{name}.png")


def _key(handle: Any, label: str) -> Key:
    from matplotlib.colors import to_hex

    line = hasattr(handle, "get_linestyle")
    colour = to_hex(handle.get_color() if line else handle.patches[0].get_facecolor())
    shapes = SHAPES if not line or handle.get_fillstyle() == "full" else HOLLOW
    marker = shapes.get(str(handle.get_marker()), "") if line else ""
    return Key(label, VARIABLES.get(colour, colour), line and handle.get_linestyle() not in ("-", "solid"), marker)


def _inline(svg: bytes, name: str) -> str:
    """matplotlib's SVG for a page: presentation attributes for styles, variables for colours, ids of its own."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for declaration in filter(None, element.attrib.pop("style", "").split(";")):
            key, _, value = (part.strip() for part in declaration.partition(":"))
            if key == "font":
                if match := _FONT.match(value):
                    element.set("font-size", match["size"])
            elif _KEPT.fullmatch(key):
                element.set(key, value)
        for key in ("fill", "stroke"):
            if (colour := element.get(key, "").lower()) in VARIABLES:
                element.set(key, VARIABLES[colour])
        for key in ("id", _LINK, "clip-path"):
            if reference := element.get(key):
                element.set(key, re.sub(r"^(#|url\(#)?", rf"\g<0>{name}-", reference, count=1))
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.set("fill", "var(--ink)")  # what has no colour of its own would be black
    root.set("role", "img")
    root.set("aria-hidden", "true")
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ET.tostring(root, encoding="unicode")
