"""The figures of a test as drawings: accuracy against the number of candidates, and how far probabilities hold.

Reads the plain data that `evaluate` makes. Matplotlib is asked for when something is drawn; no window is opened, and
its settings are left as they are. Colours are those of Okabe and Ito, which the colour-blind tell apart, and lines are
told by their labels, their dashes and their marks as well.
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swift_edge.evaluation.selectors import BASELINES, ORACLE, PASS_AT_1
from swift_edge.system.extras import import_extra
from swift_edge.system.files import write_whole

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, INK = "#8A8A8A", "#222222"
FORMATS: Final = ("png", "svg")

_STYLES: Final = {
    ORACLE: (GREY, "--", ""),
    PASS_AT_1: (GREY, ":", ""),
    "majority": (ORANGE, "-", "s"),
    "shortest": (PURPLE, "-", "v"),
    "mean_logprob": (GREEN, "-", "^"),
    "self_certainty": (SKY, "-", "D"),
    "external": (INK, "-", "P"),
}
"""Colour, dashes and mark of the rules that need no head."""
_HEAD_STYLES: Final = ((BLUE, "o"), (RED, "X"), (INK, "p"), (PURPLE, "h"))
_LEAST_RATIO: Final = 1.2
"""Least ratio of two marks that have labels on a logarithmic axis."""
_LEAST_SPAN: Final = 0.2
"""Least span of an axis of shares."""
_LEAST_DISTANCE: Final = 0.036
"""Least distance of two labels, as a share of the height."""


def check_drawing() -> None:
    """Raise `MissingExtraError` where matplotlib is absent."""
    import_extra("matplotlib", "eval", "eval")


def draw_accuracy(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the accuracy of every rule against the number of candidates, with its interval as a band."""
    figure, (axes,) = _figure(8.4, 5.2)
    sizes = results["sizes"]
    heads = list(results["run"]["heads"])
    labels = []
    for name, figures in results["accuracy"].items():
        values, low, high = ([figures[str(size)][key] for size in sizes] for key in ("value", "low", "high"))
        colour, dashes, mark, width = _style(name, heads)
        axes.plot(sizes, values, color=colour, linestyle=dashes, marker=mark, markersize=5, linewidth=width)
        if name in _STYLES or name in heads:  # more bands would hide each other
            axes.fill_between(sizes, low, high, color=colour, alpha=0.1, linewidth=0)
        labels.append((values[-1], name, colour))
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("candidates per problem, N")
    axes.set_ylabel("share of picks that are right")
    bottom, top = _share_limits(*axes.get_ylim())
    for place, (value, name, colour) in zip(_spread([each[0] for each in labels], bottom, top), labels, strict=True):
        axes.annotate(
            f"{name} {value:.3f}",
            xy=(sizes[-1], value),
            xytext=(1.05, (place - bottom) / (top - bottom)),
            textcoords="axes fraction",
            color=colour,
            verticalalignment="center",
            fontsize=9,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )
    axes.set_ylim(bottom, top)
    axes.set_title(
        f"{results['run']['bundle']['base_model']}, {results['problems']:,} problems; bands: 95 % over problems",
        loc="left",
        fontsize=10,
    )
    return _save(figure, folder, "accuracy")


def draw_economy(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw accuracy against tokens and against seconds, every rule at every size and the adaptive and pruned picks."""
    economy = results.get("economy")
    if economy is None:
        return []
    drawn = [("tokens", "tokens per problem", 1.0)]
    sizes = [str(size) for size in results["sizes"]]
    if economy["step_s"]:
        longest = economy["fixed"][sizes[-1]]["seconds"]
        unit, name = (1.0, "seconds") if longest >= 1 else (1000.0, "milliseconds")
        drawn.append(("seconds", f"decode time per problem, {name}", unit))
    figure, columns = _figure(3.4 + 3.8 * len(drawn), 5.0, len(drawn))
    heads = list(results["run"]["heads"])
    for axes, (cost, label, unit) in zip(columns, drawn, strict=True):
        spent = [unit * economy["fixed"][size][cost] for size in sizes]
        for name, figures in results["accuracy"].items():
            if name == ORACLE:
                continue  # far above what any rule can reach, it would flatten the others
            colour, dashes, mark, width = _style(name, heads)
            values = [figures[size]["value"] for size in sizes]
            axes.plot(
                spent, values, color=colour, linestyle=dashes, marker=mark, markersize=4, linewidth=width, label=name
            )
        for (name, figures), mark in zip(economy["plans"].items(), ("*", "d", "P"), strict=True):
            value = figures["accuracy"]
            axes.errorbar(
                unit * figures[cost],
                value["value"],
                yerr=[[value["value"] - value["low"]], [value["high"] - value["value"]]],
                color=RED,
                marker=mark,
                markersize=10,
                linewidth=1.2,
                linestyle="",
                label=name,
                zorder=5,
            )
        axes.set_xscale("log", base=2)
        # Where the fixed numbers of candidates lie: powers of two would say little.
        ticks = _apart(spent)
        axes.set_xticks(ticks, [_plain_number(value) for value in ticks])
        axes.minorticks_off()
        axes.set_xlabel(label)
    columns[0].set_ylabel("share of picks that are right")
    columns[0].set_ylim(_share_limits(*columns[0].get_ylim()))
    columns[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    timed = "" if len(drawn) > 1 else "; not timed, the machine was busy"
    columns[0].set_title(
        f"{results['run']['bundle']['base_model']}, {results['problems']:,} problems, N = {', '.join(sizes)}{timed}",
        loc="left",
        fontsize=10,
    )
    return _save(figure, folder, "economy")


def draw_calibration(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the share of right candidates and picks against their probability; nothing without a calibration."""
    calibration = next((each for each in results["calibration"].values() if each is not None), None)
    if calibration is None:
        return []
    figure, (axes,) = _figure(5.2, 5.0)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for (key, label), (colour, mark) in zip(
        (("candidates", "all candidates"), ("picks", f"picks out of {calibration['picks_out_of']}")),
        ((BLUE, "o"), (RED, "X")),
        strict=True,
    ):
        bins = calibration[key]["bins"]
        axes.plot(
            [each["probability"] for each in bins],
            [each["correct"] for each in bins],
            color=colour,
            marker=mark,
            markersize=6,
            linewidth=1.2,
            label=f"{label}: calibration error {calibration[key]['error']:.3f}",
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel("P(correct) that the head states")
    axes.set_ylabel("share that is right")
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    axes.set_title("each mark is a tenth of the candidates, or of the picks", loc="left", fontsize=10)
    return _save(figure, folder, "calibration")


def _share_limits(bottom: float, top: float) -> tuple[float, float]:
    """Limits of an axis of shares: hardly beyond 0 and 1, and so far apart that rounding is no slope."""
    missing = max(0.0, _LEAST_SPAN - (top - bottom)) / 2
    low, high = -0.02, 1.02
    bottom = min(max(low, bottom - missing), high - _LEAST_SPAN)
    return bottom, max(min(high, top + missing), bottom + _LEAST_SPAN)


def _apart(values: Sequence[float]) -> list[float]:
    """Those of ascending values whose labels do not cover each other on a logarithmic axis."""
    kept = list(values[:1])
    for value in values[1:]:
        if value >= _LEAST_RATIO * kept[-1] > 0:
            kept.append(value)
    return kept


def _plain_number(value: float) -> str:
    """A number as people read it: at most one decimal where it is small, and thousands apart."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _style(name: str, heads: Sequence[str]) -> tuple[str, str, str, float]:
    """Colour, dashes, mark and width of a rule's line."""
    if name in _STYLES:
        return *_STYLES[name], 1.4 if name in BASELINES else 1.2
    head = max((each for each in heads if name.startswith(each)), key=len, default="")
    colour, mark = _HEAD_STYLES[(heads.index(head) if head else 0) % len(_HEAD_STYLES)]
    if name == head:
        return colour, "-", mark, 2.2
    if name.endswith(" calibrated"):
        return colour, "-.", mark, 2.2
    return (colour, "--", mark, 1.6) if name.endswith(" vote") else (colour, ":", "", 1.2)


def _spread(values: Sequence[float], bottom: float, top: float) -> list[float]:
    """Places for labels, in the order of their values and as near to them as the least distance lets them."""
    distance = _LEAST_DISTANCE * (top - bottom)
    order = sorted(range(len(values)), key=lambda index: values[index])
    places = list(values)
    for _ in range(100):
        moved = False
        for lower, upper in itertools.pairwise(order):
            overlap = distance - (places[upper] - places[lower])
            if overlap > 1e-9:
                places[lower] -= overlap / 2
                places[upper] += overlap / 2
                moved = True
        if not moved:
            break
    return places


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Sequence[Any]]:
    """A figure without a window or a global state behind it, and its axes, which share their height."""
    figure = import_extra("matplotlib.figure", "eval", "eval").Figure(figsize=(width, height), layout="constrained")
    row = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for axes in row:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="y", color="#E3E3E3", linewidth=0.6)
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        axes.set_axisbelow(True)
    return figure, row


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write the figure in every format; the same figures give the same bytes."""
    paths = []
    for form in FORMATS:
        buffer = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        # Without a salt of its own an SVG draws its ids at random.
        with import_extra("matplotlib", "eval", "eval").rc_context({"svg.hashsalt": name}):
            figure.savefig(buffer, format=form, dpi=160, metadata=metadata)
        paths.append(folder / f"{name}.{form}")
        write_whole(paths[-1], buffer.getvalue())
    return paths
