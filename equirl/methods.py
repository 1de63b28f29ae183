"""The methods by name, and how any of them is put around a function or a module."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from equirl.canonicalizers import Canonicalize, Posed
from equirl.errors import UserError, unknown
from equirl.groups import positive
from equirl.layers import shape_of
from equirl.multigroup import Product
from equirl.representations import Grid, PerKey, Representation, Trivial
from equirl.scores import CentroidScores, GridScores, KeyScores, OrbitScores, Scores, Shape
from equirl.soft import SoftEquitune
from equirl.symmetrizers import Equitune, Equizero, Identity, LambdaEquitune, Symmetrizer

METHODS: dict[str, type[Symmetrizer]] = {
    cls.method: cls for cls in (Identity, Equitune, Equizero, LambdaEquitune, Canonicalize, Product, SoftEquitune)
}
"""The methods by name, plain first."""
EXACT = tuple(name for name, method in METHODS.items() if method.exact)
"""Those whose result is equivariant whatever was learned."""
NATIVE = "native"  # of networks that are equivariant by construction: it wraps no function, and so is none of METHODS

SCORES_BY_NAME = ("centroids", "convolutions", "network")
"""`CentroidScores`, `GridScores`, and `OrbitScores` of two hidden layers."""


def scores_for(
    rep: Representation, shape: Shape, pictures: str = "convolutions", hidden: int = 64, width: float = 0.5
) -> Scores:
    """Return fresh scores of inputs of a shape: of each entry of a dictionary that moves, summed.

    Args:
        rep: how the group moves inputs.
        shape: of one input, or of those entries of a dictionary that are to be read.
        pictures: one of `SCORES_BY_NAME`, for pictures that move by a `Grid` channels first; others have "network".
        hidden: width of the two hidden layers of "network".
        width: a factor for the channels of "convolutions".

    Raises:
        UserError: an unknown name, or a number out of range.

    >>> from equirl import cyclic
    >>> type(scores_for(Grid(cyclic(4)), (3, 9, 9), "centroids")).__name__
    'CentroidScores'
    """
    if pictures not in SCORES_BY_NAME:
        raise unknown("scores", pictures, SCORES_BY_NAME)
    positive("hidden", hidden)
    if isinstance(shape, Mapping):
        keys = rep.keys if isinstance(rep, PerKey) else dict.fromkeys(shape, rep)
        for key in shape:
            if key not in keys:
                raise unknown("key", key, keys)
        moved = {key: part for key, part in shape.items() if not isinstance(keys[key], Trivial)}
        parts = {key: scores_for(keys[key], part, pictures, hidden, width) for key, part in moved.items()}
        return KeyScores(PerKey(rep.group, keys), parts)
    shape = shape_of(shape)
    if isinstance(rep, Grid) and rep.layout == "CHW" and len(shape) == 3:
        if pictures == "centroids":
            return CentroidScores(rep, shape)
        if pictures == "convolutions" and not any(rep.shift):
            return GridScores(rep, shape, width)
    layers = [nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return OrbitScores(rep, nn.Sequential(*layers, nn.Linear(hidden, 1)), shape)


_OF_SCORES = tuple(inspect.signature(scores_for).parameters)[2:]


def make_symmetrizer(
    method: str,
    input: Representation,
    output: Representation,
    features_dim: int | None = None,
    shape: Shape | None = None,
    **options: Any,
) -> Symmetrizer:
    """Return the symmetrizer of a method's name.

    Args:
        method: one of `METHODS`.
        input: how the group moves inputs.
        output: how the same group moves outputs.
        features_dim: D, needed by ``"lambda"`` and ``"soft"`` alone.
        shape: of one input (of those entries of a dictionary that choose), for the scores of ``"canonical"`` and
            ``"product"``; not needed where `scores` are given.
        options: further arguments of the method's class; for fresh scores also those of `scores_for`, and `scores` may
            be one of their names.

    Raises:
        UserError: an unknown method or option, or no `features_dim` or `shape` where one is needed.

    >>> from equirl import Permutation, cyclic
    >>> swap = Permutation(cyclic(2), [[0, 1], [1, 0]])
    >>> make_symmetrizer("equitune", swap, swap)
    Equitune(Permutation(C2, size=2) -> Permutation(C2, size=2))
    """
    if method not in METHODS:
        raise unknown_method(method)
    chosen = METHODS[method]
    valid = [*list(inspect.signature(chosen).parameters)[2:], *(_OF_SCORES if chosen.reads_scores else ())]
    for option in options:
        if option not in valid:
            raise unknown(f"option of {method}", option, valid or ["none"])
    if chosen.reads_features:
        if features_dim is None:
            raise UserError(f"method {method!r} without features_dim: expected the number of features that f returns")
        options["features_dim"] = features_dim
    if issubclass(chosen, Posed):
        own = {name: options.pop(name) for name in _OF_SCORES if name in options}
        options["scores"] = _scores(method, input, shape, options.get("scores"), own)
    return chosen(input, output, **options)


def _scores(method: str, input: Representation, shape: Shape | None, given: Any, own: dict[str, Any]) -> Any:
    """Return the scores that are given, or fresh ones for inputs of a shape."""
    if given is not None and not isinstance(given, str):
        if own:
            raise UserError(f"{', '.join(own)} beside scores of one's own: expected one or the other")
        return given
    if shape is None:
        raise UserError(f"method {method!r} without scores or shape: expected scores=, or shape= of one input")
    chosen: dict[str, Any] = {} if given is None else {"pictures": given}
    return scores_for(input, shape, **chosen, **own)


def unknown_method(method: object, valid: Iterable[str] = METHODS) -> UserError:
    """Return the error for a method that is not among the valid ones."""
    if method == NATIVE:
        names = ", ".join(valid)
        return UserError(f"method 'native': expected one of {names}; native is for fresh dqn and qrdqn agents")
    return unknown("method", method, valid)


class Symmetrized(nn.Module):
    """A module made equivariant; the module stays as it is in `module`, with its own weights."""

    def __init__(self, module: nn.Module, symmetrizer: Symmetrizer) -> None:
        super().__init__()
        self.module, self.symmetrizer = module, symmetrizer

    def forward(self, x: Any) -> Any:
        """Return f_G(x)."""
        return self.symmetrizer(self.module, x)


def symmetrize_module(
    module: nn.Module,
    *,
    method: str,
    input: Representation,
    output: Representation,
    features_dim: int | None = None,
    shape: Shape | None = None,
    **options: Any,
) -> Symmetrized:
    """Return a torch module made equivariant, without retraining; its weights are shared, not copied.

    The module maps (B, ...) to (B, ...) or to (y, features); all else is as in `make_symmetrizer`.
    """
    return Symmetrized(module, make_symmetrizer(method, input, output, features_dim, shape, **options))
