"""Pictures that commands write with ``--plot FILE``: one look for all of them, no display, the same bytes every time.

Matplotlib is imported when a picture is asked for, since it takes longer than most commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.domain.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f6feb", "#d1572c", "#2f8f4e", "#8a4fbf", "#a8791a", "#0f8b8d", "#b8336a", "#5c6470")
"""Of lines and bars, in this order."""
ENDINGS = (".png", ".svg")

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.figsize": (9.0, 5.0),
    "figure.dpi": 110.0,
    "figure.constrained_layout.use": True,
    "font.size": 10.0,
    "grid.color": "#e3e7eb",
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "crossmargin",
}


def figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return an empty figure with one pair of axes. It belongs to no display and needs no closing."""
    import matplotlib

    with matplotlib.rc_context(_style()):
        made = _empty()
        axes = made.add_subplot()
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    return made, axes


def panels(title: str, xlabel: str, count: int) -> tuple[Figure, list[Axes]]:
    """Return an empty figure with pairs of axes side by side that share the vertical one."""
    import matplotlib

    with matplotlib.rc_context(_style()):
        made = _empty()
        made.suptitle(title, x=0.01, ha="left", fontsize="large", fontweight="bold")
        axes = list(made.subplots(1, count, sharey=True))
        for one in axes:
            one.set_xlabel(xlabel)
    return made, axes


def _style() -> dict[Any, Any]:
    from cycler import cycler

    return {**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}


def _empty() -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure()
    FigureCanvasAgg(made)
    return made


def save(fig: Figure, path: Path | str) -> None:
    """Write a figure as PNG or SVG, as the ending of ``path`` says; the same figure gives the same bytes.

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    import matplotlib

    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError("plot", f"{path.name!r} must end with .png or .svg", "name the file so")
    # Neither the date nor the version of the library belongs into the picture.
    metadata: dict[str, str | None] = {"Date": None, "Creator": None} if ending == ".svg" else {"Software": None}
    try:
        with matplotlib.rc_context(_STYLE):
            fig.savefig(path, format=ending[1:], metadata=metadata)
    except OSError as error:
        raise InputError("plot", f"{path} cannot be written: {error.strerror}") from error
