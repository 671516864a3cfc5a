"""The report's pictures: SVG by matplotlib, coloured by the page's own style, and mel spectrograms as PNG.

Text and rules take the page's colours, so that one picture serves dark and light. Points carry their numbers as titles.
"""

import base64
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from senone.eval.page import Html

PALETTE = "#2f7ed8 #e8743b #19a979 #b455c8 #c99700 #13a4b4 #e0457b #7a6ff0 #6b9b1e #a06a42".split()
MARKERS = "osD^vPX*<>"
GREY = "#8a929c"
INK, RULE = "#010203", "#040506"  # stand for the page's colours
MEL_HOP, MEL_FFT, MELS = 160, 512, 80
FLOOR, SPAN = 80.0, 30.0  # dB below the loudest of the original; dB of difference either way


@dataclass(frozen=True)
class Point:
    """A mark: where, its interval, what its title says. low_x: the left end of a whisker along x."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    low_x: float | None = None
    title: str = ""


def missing() -> str:
    """One sentence where matplotlib is not installed, else nothing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "Pictures need matplotlib: pip install 'senone[eval]', then senone eval report again."
    return ""


def style(index: int) -> tuple[str, str]:
    """Colour and marker of the index-th series."""
    return PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]


def lines(
    series: Mapping[str, Sequence[Point]],
    styles: Mapping[str, tuple[str, str]],
    *,
    x: str,
    y: str,
    log: bool = False,
    reported: Sequence[Point] = (),
) -> Html:
    """Series of points with intervals, joined in order of x; `reported` are grey crosses without a line."""

    def draw(axes: Any, titles: dict[str, str]) -> None:
        for name, points in series.items():
            colour, marker = styles[name]
            points = sorted(points, key=lambda point: point.x)
            axes.plot([p.x for p in points], [p.y for p in points], color=colour, linewidth=1.2, alpha=0.6)
            for point in points:
                if point.low is not None and point.high is not None:
                    axes.plot([point.x] * 2, [point.low, point.high], color=colour, linewidth=1.6)
                if point.low_x is not None:  # what an ideal entropy coder would save
                    axes.plot([point.low_x, point.x], [point.y] * 2, color=colour, linewidth=1.2, linestyle=(0, (1, 1)))
                    axes.plot(point.low_x, point.y, color=colour, marker="|", markersize=7)
                _mark(axes, titles, point, color=colour, marker=marker, markersize=6, markeredgewidth=0)
        for point in reported:
            _mark(axes, titles, point, color=GREY, marker="x", markersize=5, linestyle="")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        every = [point.x for points in series.values() for point in points] + [point.x for point in reported]
        if log:
            _log_axis(axes.xaxis, every)
        else:
            axes.set_xticks(sorted({*every}))

    return _svg(draw, f"{y} against {x}")


def usage(levels: Sequence[Int[np.ndarray, "code"]], title: Callable[[int], str]) -> Html:
    """How often codes are used, by rank, one line per level: 1 is the uniform share; unused codes have no place."""

    def draw(axes: Any, titles: dict[str, str]) -> None:
        import matplotlib

        colours = matplotlib.colormaps["turbo"](np.linspace(0.12, 0.88, len(levels)))  # seen on black and on white
        for level, counts in enumerate(levels):
            size, used = len(counts), np.sort(counts[counts > 0])[::-1]
            at = np.unique(np.geomspace(1, max(1, len(used)), 200).round().astype(int))  # a line of 65,536 is no wiser
            share = used[at - 1] * size / used.sum()
            (line,) = axes.plot(at / size, share, color=colours[level], linewidth=1.4)
            line.set_gid(f"p{len(titles)}")
            titles[line.get_gid()] = title(level)
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        _log_axis(axes.xaxis, [1 / len(counts) for counts in levels] + [1])
        _log_axis(axes.yaxis, [*axes.dataLim.intervaly])
        axes.set_xlabel("rank / size of the codebook")
        axes.set_ylabel("times the uniform share")

    return _svg(draw, "How often codes are used, by rank")


def scatter(places: Float[np.ndarray, "item 2"], labels: Sequence[str], words: bool = False) -> Html:
    """Dots on a plane without axes, coloured by label, with a legend where they are few; words: labels as dots."""

    def draw(axes: Any, titles: dict[str, str]) -> None:
        names = sorted({*labels})
        for index, name in enumerate(names):
            colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index // len(PALETTE) % len(MARKERS)]
            mine = places[[label == name for label in labels]]
            if words:
                for x, y in mine:
                    axes.text(x, y, name, color=colour, fontsize=7, ha="center", va="center")
            look = {"marker": "" if words else marker, "markersize": 6, "markeredgewidth": 0, "alpha": 0.85}
            (line,) = axes.plot(*mine.T, color=colour, linestyle="", label=name, **look)
            line.set_gid(f"p{len(titles)}")
            titles[line.get_gid()] = name
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.margins(0.08)
        if len(names) <= 12 and not words:
            axes.legend(fontsize=7, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))

    return _svg(draw, "Bags of codes on a plane")


def mel(wave: Float[np.ndarray, "samples"], rate: int) -> Float[np.ndarray, "mel frame"]:
    """Mel spectrogram in dB: 80 bands (Slaney), 32 ms windows every 10 ms at 16 kHz."""
    import torch

    from senone.features import mel_filters, stft

    wave = np.pad(wave, (0, max(0, MEL_FFT - len(wave))))  # the reflected ends need as much
    spectrum = stft(torch.from_numpy(np.ascontiguousarray(wave, np.float32))[None], MEL_FFT, MEL_HOP).abs()[0]
    return (20 * (mel_filters(rate, MEL_FFT, MELS) @ spectrum + 1e-6).log10()).numpy()


def mel_png(mels: Float[np.ndarray, "mel frame"], top: float) -> str:
    """A data URI of a spectrogram: black is FLOOR dB below `top`."""
    return _png((mels - top) / FLOOR + 1, "magma")


def difference_png(ref: Float[np.ndarray, "mel frame"], deg: Float[np.ndarray, "mel frame"], top: float) -> str:
    """A data URI of deg - ref: red is too loud, blue too soft, by SPAN dB at most; below the floor all are equal."""
    floor = top - FLOOR
    return _png((np.maximum(deg, floor) - np.maximum(ref, floor)) / (2 * SPAN) + 0.5, "RdBu_r")


def _png(values: Float[np.ndarray, "mel frame"], colours: str) -> str:
    """Values in [0, 1] as a PNG of 64 colours, low bands at the bottom."""
    import matplotlib
    from PIL import Image

    table: UInt8[np.ndarray, "colour 3"] = (matplotlib.colormaps[colours](np.linspace(0, 1, 64))[:, :3] * 255).astype(
        np.uint8
    )
    image = Image.fromarray((values[::-1].clip(0, 1) * 63).round().astype(np.uint8), "L")
    image.putpalette(table.tobytes())
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _mark(axes: Any, titles: dict[str, str], point: Point, **look: Any) -> None:
    (mark,) = axes.plot(point.x, point.y, **look)
    mark.set_gid(f"p{len(titles)}")
    titles[mark.get_gid()] = point.title


def _log_axis(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis around the values, with few ticks in plain figures."""
    from matplotlib.ticker import NullFormatter

    low, high = min(values) / 1.3, max(values) * 1.3
    steps = np.array([1, 2, 5] if high / low < 300 else [1])
    ticks = [tick for power in range(-9, 6) for tick in 10.0**power * steps if low <= tick <= high]
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def _svg(draw: Callable[[Any, dict[str, str]], None], label: str) -> Html:
    """One pair of axes as inline SVG, its ids its own, its colours the page's, its marks with titles."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    titles: dict[str, str] = {}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "senone", "font.size": 9, "text.color": INK}):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(color=RULE, labelcolor=INK, which="both")
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        for edge, spine in axes.spines.items():
            spine.set_color(RULE)
            spine.set_visible(edge in ("left", "bottom"))
        draw(axes, titles)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        del canvas
    text = out.getvalue()
    text = f'<svg role="img" aria-label="{escape(label)}"' + text[text.index("<svg") + 4 :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"font: (bold )?([\d.]+px) [^;\"]*", r"font: \1\2 system-ui, sans-serif", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor").replace(RULE, "var(--rule)")
    for name, title in titles.items():
        text = text.replace(f'<g id="{name}">', f'<g id="{name}"><title>{escape(title)}</title>', 1)
    own = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="f{own}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#f{own}-", text)
    return Html(text)
