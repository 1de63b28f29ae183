"""Pictures of what a run does, drawn off screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#8a8f98"
_ABREAST, _MOST = 8, 24  # panels in a row, and in all


def orbit_picture(
    views: NDArray[Any],
    values: NDArray[Any],
    element_names: Sequence[str],
    action_names: Sequence[str],
    values_are: str = "action value",
) -> NDArray[np.uint8]:
    """Return a picture of one observation's orbit, each view above the action values found there.

    Under an equivariant network the bars of each panel are those of the first, moved by the element. They stand on the
    mean of all values, so that small differences show beside large values. Groups of more than 24 elements show 24.

    Args:
        views: shape (G, size) for vectors or (G, C, H, W) for pictures.
        values: action values at each view, shape (G, actions); the greedy action is drawn in orange.
        element_names: one a panel.
        action_names: one a bar.
        values_are: what their axis says; the bars of an "action" stand on 0, and none is the best.

    Returns:
        RGB of shape (height, width, 3).

    >>> orbit_picture(np.zeros((2, 4)), np.eye(2), ["e", "r"], ["left", "right"]).shape[2]
    3
    """
    n, continuous = min(len(views), _MOST), values_are == "action"
    columns, rows = min(n, _ABREAST), -(-n // _ABREAST)
    figure = Figure(figsize=(max(2.2 * columns, 4.4), 4.2 * rows), dpi=90, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()  # until something is drawn there
    for i in range(n):
        row, column = divmod(i, columns)
        above, below = axes[2 * row][column], axes[2 * row + 1][column]
        for axis, label in ((above, "observation"), (below, values_are)):
            axis.set_axis_on()
            axis.set_ylabel(label if column == 0 else "", fontsize=8)
        above.set_title(element_names[i], fontsize=9)
        if views.ndim == 4:
            above.imshow(_rgb(views[i]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            above.set(xticks=[], yticks=[])
        else:
            flat = views.reshape(len(views), -1)
            _bars(above, flat[i], flat, 0.0, [GREY] * flat.shape[1], column == 0)
            if flat.shape[1] <= 10:
                above.set_xticks(np.arange(flat.shape[1]))
        best = -1 if continuous else int(values[i].argmax())
        colours = [ORANGE if action == best else BLUE for action in range(values.shape[1])]
        _bars(below, values[i], values, 0.0 if continuous else float(values.mean()), colours, column == 0)
        below.set_xticks(np.arange(len(colours)), action_names, rotation=90 if len(colours) > 4 else 0)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _bars(
    axis: Axes, heights: NDArray[Any], every: NDArray[Any], base: float, colours: list[str], labelled: bool
) -> None:
    """Draw bars that stand on a base line, on the same scale in every panel."""
    low, high = min(base, float(every.min())), max(base, float(every.max()))
    margin = 0.05 * (high - low) or 1.0
    axis.bar(np.arange(len(heights)), heights - base, bottom=base, color=colours)
    axis.axhline(base, color="black", linewidth=0.6)
    axis.set_ylim(low - margin, high + margin)
    axis.tick_params(labelsize=7, labelleft=labelled)


def _rgb(view: NDArray[Any]) -> NDArray[Any]:
    """Return a picture (C, H, W) as something to look at: three channels as colours, stacked frames as their last."""
    scaled = view.astype(np.float64)
    scaled = scaled / 255.0 if view.dtype == np.uint8 else scaled / max(1e-9, float(np.abs(scaled).max()))
    return np.moveaxis(scaled, 0, -1).clip(0, 1) if len(view) == 3 else scaled[-1]
