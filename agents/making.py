"""Symmetrizers as policies make them: of a method's name, for the observations of a space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim

from equirl.canonicalizers import Canonicalize
from equirl.methods import make_symmetrizer
from equirl.representations import Representation
from equirl.scores import Shape
from equirl.symmetrizers import Symmetrizer


def symmetrizer_of(
    method: str,
    input: Representation,
    output: Representation,
    features_dim: int,
    shape: Shape,
    options: Mapping[str, Any],
) -> Symmetrizer:
    """Return the symmetrizer of a method's name, as `equirl.make_symmetrizer` does, with defaults for fresh networks.

    They are of "canonical" alone: the centroids of pictures score poses, for ``width=`` group convolutions do, and
    unless there is a prior, poses are learned from the outputs (`align`).
    """
    if method == Canonicalize.method:
        pictures = "convolutions" if "width" in options else "centroids"
        options = {"scores": pictures, "align": float("prior" not in options), **options}
    return make_symmetrizer(method, input, output, features_dim, shape, **options)


def movable_shape(space: spaces.Space[Any]) -> Shape:
    """Return the shape of an observation as the group moves it: discrete ones are one-hot vectors.

    >>> movable_shape(spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2, 5))}))
    {'a': (3,), 'b': (2, 5)}
    """
    if isinstance(space, spaces.Dict):
        return {key: _shape(part) for key, part in space.spaces.items()}
    return _shape(space)


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    whole = isinstance(space, spaces.Box | spaces.MultiBinary) and space.shape
    return tuple(space.shape) if whole and space.shape else (get_flattened_obs_dim(space),)
