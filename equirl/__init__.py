"""Equivariant reinforcement learning for Gymnasium and Stable-Baselines3."""

from typing import TYPE_CHECKING, Any

from equirl.canonicalizers import Canonicalize
from equirl.checks import equivariance_error, greedy_disagreement
from equirl.errors import UserError
from equirl.groups import Group, cyclic, dihedral, group_named, symmetric, trivial
from equirl.methods import METHODS, Symmetrized, make_symmetrizer
from equirl.multigroup import InvariantSymmetric, Product
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
from equirl.soft import SoftEquitune
from equirl.symmetrizers import Equitune, Equizero, Identity, LambdaEquitune, Symmetrizer
from equirl.symmetry import Symmetry, register_symmetry, registered_symmetries, resolve_symmetry, symmetry_of
from equirl.wrapping import symmetrize

if TYPE_CHECKING:
    from equirl.verification import check_symmetry, discover_symmetries

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Canonicalize",
    "Equitune",
    "Equizero",
    "Grid",
    "Group",
    "Identity",
    "InvariantSymmetric",
    "LambdaEquitune",
    "Matrix",
    "PerKey",
    "Permutation",
    "Product",
    "Representation",
    "SignedPermutation",
    "SoftEquitune",
    "Symmetrized",
    "Symmetrizer",
    "Symmetry",
    "Tokens",
    "Trivial",
    "UserError",
    "check_symmetry",
    "cyclic",
    "dihedral",
    "discover_symmetries",
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


def __getattr__(name: str) -> Any:
    if name in ("check_symmetry", "discover_symmetries"):  # their statistics take a second to load
        from equirl import verification

        return getattr(verification, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
