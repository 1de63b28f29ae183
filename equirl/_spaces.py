"""Which Gymnasium spaces a representation acts on, and how one that was written for single frames fits a space."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from equirl._representation import Indexed
from equirl.errors import UserError
from equirl.grids import Grid
from equirl.representations import Matrix, PerKey, Permutation, Representation, SignedPermutation, Trivial


def check_space(role: str, rep: Representation, space: spaces.Space[Any]) -> None:
    """Raise a `UserError` that begins with the role ("observation") unless a representation acts on a space."""
    if isinstance(space, spaces.Dict) and isinstance(rep, PerKey):
        if set(space.spaces) != set(rep.keys):
            raise UserError(f"{role} keys {sorted(space.spaces)}: expected {sorted(rep.keys)}, a representation each")
        for key, part in space.spaces.items():
            check_space(f"{role} {key!r}", rep.keys[key], part)
        return
    if isinstance(space, spaces.Dict) and not isinstance(rep, Trivial):
        raise UserError(f"{role} space is a Dict: expected a PerKey representation, got {rep!r}")
    discrete = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    if discrete and not isinstance(rep, Permutation | Trivial):
        raise UserError(f"{role} space {space}: expected a permutation of its entries, got {rep!r}")
    if isinstance(rep, SignedPermutation) and not discrete:
        _check_numbers(role, rep, space)
    try:
        rep.check_shape(_vector_shape(space))
    except UserError as error:
        raise UserError(f"{role} space {_short(space)}: {error}") from None
    if isinstance(space, spaces.MultiDiscrete) and isinstance(rep, Permutation):
        _check_blocks(role, rep, space)


def check_sides(rep: Representation, space: spaces.Space[Any], sides: tuple[int, int]) -> None:
    """Raise a `UserError` for pictures of another size than that of which a symmetry is claimed."""
    if isinstance(rep, Grid) and isinstance(space, spaces.Box):
        found = space.shape[-3:-1] if rep.layout == "HWC" else space.shape[-2:]
        if found != sides:
            height, width = sides
            raise UserError(
                f"observation space {_short(space)}: expected pictures of {height} x {width}, channels "
                f"{'last' if rep.layout == 'HWC' else 'first'}, of which alone the symmetry is claimed"
            )


def check_bounds(rep: Representation, space: spaces.Box) -> None:
    """Raise unless every element takes a Box of actions to itself: clipping or squashing would break the symmetry."""
    bounds = torch.as_tensor(np.stack([space.low, space.high])).double()
    if isinstance(rep, Matrix):
        kept = bool(bounds.isinf().all())
    else:
        moved = rep.orbit(bounds)
        images, same = torch.stack([moved.amin(1), moved.amax(1)], 1), bounds.expand(moved.shape)
        kept = torch.equal(images, same)
        if isinstance(rep, Indexed) and rep.offsets is not None:  # about a centre, bounds meet to their rounding
            kept = torch.allclose(images, same, rtol=1e-6, atol=1e-6 * float(np.abs(rep.offsets).max()))
    if not kept:
        raise UserError(f"action space {_short(space)} from {space.low} to {space.high}: {rep!r} leads out of it")


def fitted(rep: Representation, space: spaces.Space[Any], sides: tuple[int, int] | None = None) -> Representation:
    """Return a representation of one frame as it acts on a space of stacked frames, or of pictures in another layout.

    What fits already, or cannot be made to fit, comes back as it is.
    """
    if isinstance(rep, PerKey) and isinstance(space, spaces.Dict):
        parts = space.spaces
        return PerKey(rep.group, {k: fitted(r, parts[k]) if k in parts else r for k, r in rep.keys.items()})
    if not isinstance(space, spaces.Box):
        return rep
    if isinstance(rep, Grid):
        return _fitted_grid(rep, space.shape, sides)
    if isinstance(rep, SignedPermutation | Matrix) and space.shape:
        frames, rest = divmod(space.shape[-1], rep.size)
        return rep if rest or frames < 2 else rep.stacked(frames)
    return rep


def _fitted_grid(rep: Grid, shape: tuple[int, ...], sides: tuple[int, int] | None) -> Grid:
    """Return the layout and number of frames that a shape shows.

    Of two that it may show, the one of these sides, then that of a square picture, of fewer channels, the one declared.
    """
    if len(shape) < 3:  # rows and columns alone
        return rep.in_layout("CHW")
    found: list[tuple[bool, bool, int, bool, Grid]] = []
    for layout, axis, (height, width) in (("CHW", -3, shape[-2:]), ("HWC", -1, shape[-3:-1])):
        frames, rest = (1, 0) if rep.channels is None else divmod(shape[axis], rep.channels.shape[1])
        if not rest:
            candidate = rep.in_layout(layout)
            candidate = candidate.stacked(frames) if frames > 1 else candidate
            found.append(((height, width) != sides, height != width, shape[axis], layout != rep.layout, candidate))
    return min(found, key=lambda each: each[:4])[4] if found else rep


def _check_numbers(role: str, rep: SignedPermutation, space: spaces.Space[Any]) -> None:
    kind = np.dtype(space.dtype).kind
    if kind not in "if" and ((rep.signs < 0).any() or rep.offsets is not None):
        does = "changes signs" if (rep.signs < 0).any() else "moves about a centre"
        raise UserError(f"{role} space holds {space.dtype}: expected signed numbers, since {rep!r} {does}")
    if kind == "i" and not rep.keeps_whole_numbers:
        raise UserError(f"{role} space holds {space.dtype}: expected floats, since {rep!r} moves by fractions")


def _check_blocks(role: str, rep: Permutation, space: spaces.MultiDiscrete) -> None:
    """Raise unless every element takes all values of one choice to the values of one choice."""
    sizes = space.nvec.ravel()
    block = np.repeat(np.arange(len(sizes)), sizes)
    for name, row in zip(rep.group.names, rep.indices, strict=True):
        if len(set(zip(block.tolist(), block[row].tolist(), strict=True))) > len(sizes):
            raise UserError(f"{role} space {space}: element {name} takes values of one choice to several: {rep!r}")


def _vector_shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Return the shape on which a representation acts: discrete spaces count as one-hot vectors."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return (int(space.nvec.sum()),)
    return tuple(space.shape or ())


def _short(space: spaces.Space[Any]) -> str:
    return f"Box{space.shape}" if isinstance(space, spaces.Box) else str(space)
