"""Learned canonicalization in policies: the scores that fit a space of observations."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from torch import nn

from equirl.agents.extractors import NATURE_CNN_SIDE
from equirl.canonicalizers import Canonicalize, GridScores, OrbitScores, Scores
from equirl.errors import UserError, unknown
from equirl.layers import positive
from equirl.representations import Grid, Representation
from equirl.symmetry import Symmetry

CANONICAL = Canonicalize.method
_OF_SCORES = ("hidden", "width")
_OPTIONS = (*_OF_SCORES, "beta", "prior", "tolerance")


def canonicalizer(symmetry: Symmetry, space: spaces.Space[Any], **options: Any) -> Canonicalize:
    """Return the symmetrizer of ``method="canonical"``, with scores for a space of observations.

    Args:
        symmetry: how the group moves observations and actions.
        space: of observations.
        options: `beta`, `prior` and `tolerance` of `Canonicalize`; `width`, a factor for the channels of the group
            convolutions that score pictures; `hidden`, the width of the two layers that score vectors.

    Raises:
        UserError: dictionaries, or another option.
    """
    for option in options:
        if option not in _OPTIONS:
            raise unknown("option of canonical", option, _OPTIONS)
    if isinstance(space, spaces.Dict):
        raise UserError("method 'canonical' on a Dict of observations: expected pictures or vectors")
    own = {name: options.pop(name) for name in _OF_SCORES if name in options}
    scores = _scores(symmetry.observation, space, **own)
    return Canonicalize(symmetry.observation, symmetry.action, scores, **options)


def _scores(rep: Representation, space: spaces.Space[Any], hidden: int = 64, width: float = 0.5) -> Scores:
    if isinstance(rep, Grid) and rep.layout == "CHW" and not rep.fixed and not any(rep.shift):
        shape = space.shape or ()
        kind = "small" if min(shape[1:]) < NATURE_CNN_SIDE else "nature"
        return GridScores(rep, shape, width=width, kind=kind)
    size, hidden = get_flattened_obs_dim(space), positive("hidden", hidden)
    layers = [nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return OrbitScores(rep, nn.Sequential(*layers, nn.Linear(hidden, 1)))
