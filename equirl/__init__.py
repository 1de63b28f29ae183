"""Equivariant reinforcement learning for Gymnasium and Stable-Baselines3."""

from equirl.checks import equivariance_error, greedy_disagreement
from equirl.errors import UserError
from equirl.groups import Group, cyclic, dihedral, group_named, symmetric, trivial
from equirl.representations import (
    Grid,
    Matrix,
    PerKey,
    Permutation,
    Representation,
    SignedPermutation,
    Tokens,
    Trivial,
)
from equirl.symmetrizers import (
    METHODS,
    Equitune,
    Equizero,
    Identity,
    LambdaEquitune,
    Symmetrized,
    Symmetrizer,
    make_symmetrizer,
    symmetrize,
)
from equirl.symmetry import Symmetry, register_symmetry, registered_symmetries, resolve_symmetry, symmetry_of

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Equitune",
    "Equizero",
    "Grid",
    "Group",
    "Identity",
    "LambdaEquitune",
    "Matrix",
    "PerKey",
    "Permutation",
    "Representation",
    "SignedPermutation",
    "Symmetrized",
    "Symmetrizer",
    "Symmetry",
    "Tokens",
    "Trivial",
    "UserError",
    "cyclic",
    "dihedral",
    "equivariance_error",
    "greedy_disagreement",
    "group_named",
    "make_symmetrizer",
    "register_symmetry",
    "registered_symmetries",
    "resolve_symmetry",
    "symmetric",
    "symmetrize",
    "symmetry_of",
    "trivial",
]
