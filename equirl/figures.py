"""Pictures of what a run does, drawn off screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#8a8f98"


def orbit_picture(
    views: NDArray[Any], values: NDArray[Any], element_names: Sequence[str], action_names: Sequence[str]
) -> NDArray[np.uint8]:
    """Return a picture of one observation's orbit, each view above the action values found there.

    Under an equivariant network the bars of each panel are those of the first, moved by the element.

    Args:
        views: shape (G, size) for vectors or (G, C, H, W) for pictures.
        values: action values at each view, shape (G, actions); the greedy action is drawn in orange.
        element_names: one a panel.
        action_names: one a bar.

    Returns:
        RGB of shape (height, width, 3).

    >>> orbit_picture(np.zeros((2, 4)), np.eye(2), ["e", "r"], ["left", "right"]).shape[2]
    3
    """
    n = len(views)
    figure = Figure(figsize=(max(2.2 * n, 4.4), 4.2), dpi=90, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, n, squeeze=False, sharey="row")
    for column, (view, q) in enumerate(zip(views, values, strict=True)):
        above, below = axes[0][column], axes[1][column]
        if view.ndim == 3:
            above.imshow(_rgb(view), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            above.set(xticks=[], yticks=[])
        else:
            above.bar(np.arange(view.size), view.ravel(), color=GREY)
            above.axhline(0, color="black", linewidth=0.6)
            above.set(xticks=np.arange(view.size))
            above.tick_params(labelsize=7)
        above.set_title(element_names[column], fontsize=9)
        below.bar(np.arange(len(q)), q, color=[ORANGE if i == int(q.argmax()) else BLUE for i in range(len(q))])
        below.axhline(0, color="black", linewidth=0.6)
        below.set_xticks(np.arange(len(q)), action_names, rotation=90 if len(q) > 4 else 0, fontsize=7)
        below.tick_params(axis="y", labelsize=7)
    axes[0][0].set_ylabel("observation", fontsize=8)
    axes[1][0].set_ylabel("action value", fontsize=8)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _rgb(view: NDArray[Any]) -> NDArray[Any]:
    """Return a picture (C, H, W) as something to look at: three channels as colours, stacked frames as their last."""
    scaled = view.astype(np.float64)
    scaled = scaled / 255.0 if view.dtype == np.uint8 else scaled / max(1e-9, float(np.abs(scaled).max()))
    return np.moveaxis(scaled, 0, -1) if len(view) == 3 else scaled[-1]
