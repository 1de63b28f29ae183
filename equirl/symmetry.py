"""The claim that an environment makes: one group with a representation on observations and one on actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium import spaces

from equirl._maps import Map, compose, order_of, parse_map, representation_of
from equirl._spaces import check_bounds, check_sides, check_space, fitted
from equirl.errors import UserError, unknown
from equirl.grids import Grid
from equirl.groups import Group, closure, positive, trivial
from equirl.representations import PerKey, Representation, Trivial


class Symmetry(dict[str, Any]):
    """One group that moves observations and actions together.

    An optimal action-value function obeys Q*(g s, g a) = Q*(s, a) when transitions, rewards and termination are
    unchanged by every g (van der Pol et al. 2020, arXiv 2006.16908). A Symmetry is the dictionary of its own plain JSON
    data, so SB3 writes it into a model's zip as readable text and reads it back without unpickling.

    Args:
        observation: how the group moves observations.
        action: how the same group moves actions (for a discrete space: action values).
        name: what it is called, for instance the environment's id.
        sides: height and width of the pictures that it is claimed of, where it need not be true of others: a frame
            whose middle lies elsewhere looks different mirrored. ``Symmetry(s.observation, s.action)`` has none.

    Raises:
        UserError: two different groups, an element that moves actions but leaves every observation as it is, or sides
            of what is no picture.

    >>> cartpole = Symmetry.generated_by(({"signs": [-1, -1, -1, -1]}, [1, 0]), name="mine")
    >>> cartpole.group, cartpole["action"]
    (C2, {'kind': 'permutation', 'indices': [[0, 1], [1, 0]]})
    >>> import json; Symmetry.from_data(json.loads(json.dumps(cartpole))) == cartpole
    True
    """

    def __init__(
        self, observation: Representation, action: Representation, name: str = "", sides: Sequence[int] | None = None
    ) -> None:
        if observation.group != action.group:
            raise UserError(
                f"observations move by {observation.group} and actions by {action.group}: expected one group"
            )
        for g in range(len(observation.group)):
            if observation.is_identity(g) and not action.is_identity(g):
                raise UserError(
                    f"element {observation.group.names[g]} moves actions but leaves every observation as it is: "
                    "expected observation and action generators of matching order"
                )
        super().__init__(
            name=name, group=observation.group.to_data(), observation=observation.to_data(), action=action.to_data()
        )
        self.observation, self.action, self.name = observation, action, name
        self.sides = None if sides is None else _checked_sides(sides, observation)
        if self.sides is not None:
            self["sides"] = list(self.sides)

    @property
    def group(self) -> Group:
        """The group that moves both."""
        return self.observation.group

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Symmetry:
        """Return the symmetry whose plain data are given, or the generators of one as `generated_by` takes them.

        >>> Symmetry.from_data({"generators": [["rot90", [1, 2, 3, 0]], ["flip_x", [0, 3, 2, 1]]]}).group
        D4
        """
        if isinstance(data, Symmetry):
            return data
        by_generators = isinstance(data, Mapping) and "generators" in data
        parts = ["generators"] if by_generators else ["group", "observation", "action"]
        required = len(parts)
        parts += ["name", "sides"]
        if not isinstance(data, Mapping):
            raise UserError(f"symmetry {data!r}: expected a mapping with {', '.join(parts)}")
        for part in data:
            if part not in parts:
                raise unknown("part of a symmetry", part, parts)
        named: dict[str, Any] = {"name": str(data.get("name", "")), "sides": data.get("sides")}
        if by_generators:
            if not isinstance(data["generators"], list | tuple):
                raise UserError(f"generators {data['generators']!r}: expected a list of pairs")
            return Symmetry.generated_by(*data["generators"], **named)
        missing = [part for part in parts[:required] if part not in data]
        if missing:
            raise UserError(f"symmetry without {', '.join(missing)}: expected a mapping with {', '.join(parts)}")
        group = Group.from_data(data["group"])
        seen, done = (Representation.from_data(group, data[key]) for key in ("observation", "action"))
        return Symmetry(seen, done, **named)

    @staticmethod
    def generated_by(*generators: tuple[Any, Any], name: str = "", sides: Sequence[int] | None = None) -> Symmetry:
        """Return the symmetry of all products of generators, each an (observation map, action map) in plain terms.

        Vectors: ``{"signs": [...], "permutation": [...]}``, with ``"centre": [...]`` where they mirror about another
        point than 0; actions: a permutation; pictures: a name such as ``"rot90"`` or
        ``{"grid": "flip_x", "channels": [...]}``; dictionaries: ``{"keys": {key: map}}``.

        Raises:
            UserError: a map that is malformed, or whose repetitions on observations and actions do not match, or
                generators about different centres.

        >>> turn, mirror = ("rot90", [1, 2, 3, 0]), ("flip_x", [0, 3, 2, 1])
        >>> Symmetry.generated_by(turn, mirror).group
        D4
        >>> Symmetry.generated_by(({"signs": [-1, -1], "centre": [5, 0]}, [1, 0])).observation.describe(1)
        'reflect 0 about 5, negate 1'
        """
        if not generators or any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in generators):
            raise UserError(f"generators {list(generators)}: expected pairs, each (observation map, action map)")
        pairs: list[tuple[Map, Map]] = [(parse_map(seen), parse_map(done)) for seen, done in generators]
        for number, (seen, done) in enumerate(pairs, 1):
            if order_of(seen) % order_of(done):
                raise UserError(
                    f"generator {number} has order {order_of(seen)} on observations and {order_of(done)} on actions: "
                    "expected the order on actions to divide the order on observations"
                )
        elements, group = closure(
            pairs,
            lambda later, earlier: (compose(later[0], earlier[0]), compose(later[1], earlier[1])),
            (pairs[0][0].identity(), pairs[0][1].identity()),
        )
        seen_maps, done_maps = zip(*elements, strict=True)
        return Symmetry(representation_of(group, seen_maps), representation_of(group, done_maps), name, sides)

    @staticmethod
    def per_key(symmetries: Mapping[str, str | Mapping[str, Any]], name: str = "") -> Symmetry:
        """Return the symmetry of a dictionary of observations each of which has a group of its own.

        The group is their product: (g_1, ..., g_N) moves the k-th entry by g_k alone, and actions by each in turn.
        `sides` are not kept: it is claimed of pictures of any size.

        Args:
            symmetries: of every key of the observations, as `resolve_symmetry` takes them; "none" where nothing moves.
            name: what it is called.

        Raises:
            UserError: no keys, or actions of different symmetries that do not commute.

        >>> left, up = ({"generators": [[{"signs": [-1, 1]}, move]]} for move in ([1, 0, 2, 3], [0, 1, 3, 2]))
        >>> Symmetry.per_key({"feet": left, "head": up}).group
        C2xC2
        """
        if not isinstance(symmetries, Mapping) or not symmetries:
            raise UserError(f"symmetries {symmetries!r}: expected a mapping from each key to its symmetry")
        parts = {key: resolve_symmetry(value) for key, value in symmetries.items()}
        alone = []
        for key, part in parts.items():
            still = dict.fromkeys(parts, Trivial(part.group))
            alone.append(Symmetry(PerKey(part.group, {**still, key: part.observation}), part.action))
        whole = reduce(Symmetry.__mul__, alone)
        return Symmetry(whole.observation, whole.action, name)

    def __mul__(self, other: Symmetry) -> Symmetry:
        """Return the symmetry of the product group, whose factors move both observations and actions as before.

        Raises:
            UserError: factors that do not commute, or that act on different observations or actions, or on pictures of
                different `sides`.

        >>> flip = Symmetry.generated_by(("flip_x", [1, 0, 2, 3]))
        >>> (flip * Symmetry.generated_by(("flip_y", [0, 1, 3, 2]))).group
        C2xC2
        """
        if self.sides and other.sides and self.sides != other.sides:
            raise UserError(f"sides {self.sides} and {other.sides}: expected pictures of one size")
        seen, done = self.observation * other.observation, self.action * other.action
        return Symmetry(seen, done, sides=self.sides or other.sides)

    def check_spaces(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        """Raise a `UserError` unless the symmetry acts on these Gymnasium spaces."""
        self.check_observation_space(observation_space)
        check_space("action", self.action, action_space)
        if isinstance(action_space, spaces.Box):
            check_bounds(self.action, action_space)

    def check_observation_space(self, space: spaces.Space[Any]) -> None:
        """Raise a `UserError` unless the symmetry acts on observations of this Gymnasium space."""
        try:
            check_space("observation", self.observation, space)
            if self.sides is not None:
                check_sides(self.observation, space, self.sides)
        except UserError as error:
            known = _REGISTRY.get(self.name)
            if known is None or known.hint is None or resolve_symmetry(self.name).action != self.action:
                raise
            raise UserError(f"{error}; {known.hint}") from None

    def stacked(self, k: int) -> Symmetry:
        """Return the symmetry of k observations stacked along the last axis (vectors) or the channels (images)."""
        return self if k == 1 else Symmetry(self.observation.stacked(k), self.action, self.name, self.sides)

    def fitted(self, observation_space: spaces.Space[Any]) -> Symmetry:
        """Return the symmetry as it acts on this space: frames that are stacked, pictures channels first or last.

        Vectors of n entries fit a last axis of k n. Pictures fit a layout in which their `channels`, where given,
        divide the channel axis; where both do, the one of the `sides`, then of a square picture, then of fewer
        channels, then the one declared. Pictures that leave some channels `fixed` can only be stacked where all
        `channels` are given.

        Raises:
            UserError: the symmetry does not act on such observations.

        >>> import numpy as np
        >>> flip = Symmetry.generated_by(("flip_x", [1, 0]))
        >>> flip.fitted(spaces.Box(0, 255, (84, 84, 3), np.uint8)).observation.layout
        'HWC'
        """
        seen = fitted(self.observation, observation_space, self.sides)
        adapted = self if seen == self.observation else Symmetry(seen, self.action, self.name, self.sides)
        adapted.check_observation_space(observation_space)
        return adapted

    def __reduce__(self) -> Any:
        return Symmetry.from_data, (dict(self),)

    def __repr__(self) -> str:
        return f"Symmetry({self.name or 'unnamed'}: {self.observation!r} on observations, {self.action!r} on actions)"


def _checked_sides(sides: Any, observation: Representation) -> tuple[int, int]:
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise UserError(f"sides {sides!r}: expected height and width of the pictures")
    if not isinstance(observation, Grid):
        raise UserError(f"sides {sides!r} with {observation!r}: expected pictures, which a Grid moves")
    height, width = (positive("sides", side) for side in sides)
    return height, width


def no_symmetry() -> Symmetry:
    """Return the symmetry of the identity alone, which fits every space."""
    return Symmetry(Trivial(trivial()), Trivial(trivial()), "none")


class _Registered(NamedTuple):
    source: Symmetry | Callable[[], Symmetry]
    hint: str | None = None


_REGISTRY: dict[str, _Registered] = {"none": _Registered(no_symmetry)}
_LOADED: list[bool] = []


def register_symmetry(name: str, symmetry: Symmetry | Callable[[], Symmetry], hint: str | None = None) -> None:
    """Make a symmetry known under a name, usually the environment's id; a function is called when first asked for.

    The hint ends the message to whom it does not fit: where an environment is found that it fits.
    Packages add theirs by an entry point of the group ``equirl.symmetries`` that names a module which calls this.
    """
    _REGISTRY[name] = _Registered(symmetry, hint)


def registered_symmetries() -> list[str]:
    """Return every registered name."""
    if not _LOADED:
        _LOADED.append(True)  # before loading, so that a catalogue may itself ask for names
        before = dict(_REGISTRY)
        for entry in entry_points(group="equirl.symmetries"):
            entry.load()
        _REGISTRY.update(before)  # what the program itself registered stands before the catalogues
    return sorted(_REGISTRY)


def resolve_symmetry(value: str | Mapping[str, Any]) -> Symmetry:
    """Return the Symmetry that a registered name, a Symmetry or its plain data stand for.

    >>> resolve_symmetry("CartPole-v1").group
    C2
    """
    if isinstance(value, Mapping):
        return Symmetry.from_data(value)
    if not isinstance(value, str):
        raise UserError(f"symmetry {value!r}: expected a registered name, a Symmetry or its plain data")
    names = registered_symmetries()
    if value not in names:
        raise unknown("symmetry", value, names)
    source, hint = _REGISTRY[value]
    if not isinstance(source, Symmetry):
        source = source()
        _REGISTRY[value] = _Registered(source, hint)
    return source


def symmetry_of(env: str | gym.Env[Any, Any]) -> Symmetry | None:
    """Return the symmetry that an environment carries or that is registered for its id, or None."""
    if not isinstance(env, str):
        try:
            return resolve_symmetry(env.get_wrapper_attr("symmetry"))
        except AttributeError:
            env = env.spec.id if env.spec is not None else ""
    return resolve_symmetry(env) if env in registered_symmetries() else None
