"""Simulators of MuJoCo environments: their state is set from an observation, so that any claim can be stepped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from equirl.errors import UserError
from equirl.verification.simulators import ByObservation

Floats = NDArray[np.float64]

_DEEPEST = -0.05
"""How far, in metres, bodies may overlap in a scattered state; deeper ones fly apart."""


class MujocoState(NamedTuple):
    """Positions (nq,) and velocities (nv,) in MuJoCo's generalised coordinates."""

    qpos: Floats
    qvel: Floats


class Layout(NamedTuple):
    """How an environment shows positions and velocities at the beginning of its observations, and back.

    No state shows cosines and sines that do not belong to one angle: `decode` then returns the nearest state, whose
    own observation tells that the claim asks for the impossible.
    """

    encode: Callable[[MujocoState], Floats]
    decode: Callable[[Floats, MujocoState], MujocoState]


class MujocoSimulator(ByObservation):
    """Steps a MuJoCo environment from any positions and velocities.

    The solver's warm start, the clock and the last controls are cleared before each step, so equal states give equal
    steps, bit for bit. Observations show velocities as they are, also where the environment clips them (Walker2d,
    Hopper): clipping keeps every symmetry, and clipped velocities do not tell the state.

    Args:
        env: an environment whose observations begin with positions (without the first few) and velocities, or with the
            sines and cosines of Reacher or InvertedDoublePendulum; for others no images are known.

    Raises:
        UserError: the environment has no method ``_get_obs``.
    """

    complete = False  # no image means an unknown layout: the nearest state stands in for one that cannot be

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._base: Any = env.unwrapped
        if not hasattr(self._base, "_get_obs"):
            raise UserError(f"{self._base}: expected a method _get_obs, as in Gymnasium's MuJoCo environments")
        env.reset(seed=0)
        self._start = self.read()
        self._layout = self._find_layout()

    def read(self) -> MujocoState:
        return MujocoState(self._base.data.qpos.copy(), self._base.data.qvel.copy())

    def write(self, state: MujocoState) -> None:
        import mujoco

        mujoco.mj_resetData(self._base.model, self._base.data)
        self._base.set_state(state.qpos, state.qvel)
        mujoco.mj_rnePostConstraint(self._base.model, self._base.data)  # the contact forces that some observations show

    def encode(self, state: MujocoState) -> Floats:
        self.write(state)
        observation = np.array(self._base._get_obs(), np.float64)
        if self._layout is not None:
            head = self._layout.encode(state)
            observation[: len(head)] = head
        return observation

    def decode(self, observation: Any, like: MujocoState) -> MujocoState | None:
        if self._layout is None:
            return None
        shown = len(self._layout.encode(like))
        values = np.asarray(observation, np.float64)
        if values.ndim != 1 or len(values) < shown or not np.isfinite(values).all():
            return None
        return self._layout.decode(values[:shown], like)

    def scatter(self, rng: np.random.Generator) -> MujocoState | None:
        """Return joints anywhere within their limits; of bodies that can fall, half lie or stand on the ground."""
        if self._layout is None:
            return None
        scale = rng.uniform(0.1, 1.0)
        while True:
            drawn = self._draw(rng, scale)
            # Coordinates that observations hide stay as after a reset: no image could move them.
            state = self._layout.decode(self._layout.encode(drawn), self._start)
            if scale < 1e-3 or self._gap(state) > _DEEPEST:
                return self._lowered(state) if rng.random() < 0.5 else state
            scale *= 0.8

    def _gap(self, state: MujocoState) -> float:
        """Return the smallest distance of bodies near each other: negative where they overlap."""
        self.write(state)
        return float(min(self._base.data.contact.dist, default=np.inf))

    def _lowered(self, state: MujocoState) -> MujocoState:
        """Return the state brought down until it touches the ground, or as it is where nothing can fall."""
        height = self._height()
        if height is None:
            return state
        high, low = 0.0, 3.0
        for _ in range(12):
            middle = (high + low) / 2
            high, low = (high, middle) if self._gap(_moved(state, height, -middle)) < -0.01 else (middle, low)
        return _moved(state, height, -high)

    def _height(self) -> int | None:
        """Return the position that is a body's height above the ground, or None where there is none."""
        model = self._base.model
        for joint in np.flatnonzero(model.body_parentid[model.jnt_bodyid] == 0):
            kind, at = model.jnt_type[joint], int(model.jnt_qposadr[joint])
            if kind == 0 or (kind == 2 and model.jnt_axis[joint][2] > 0.99):
                return at + 2 if kind == 0 else at
        return None

    def _draw(self, rng: np.random.Generator, scale: float) -> MujocoState:
        model = self._base.model
        qpos = self._start.qpos.copy()
        for joint in range(model.njnt):
            at, kind = model.jnt_qposadr[joint], model.jnt_type[joint]
            if kind <= 1:  # free (position and quaternion) or ball (quaternion)
                place = slice(at, at + 3) if kind == 0 else slice(at, at)
                qpos[place] += scale * rng.normal(0.0, 0.3, qpos[place].shape)
                turn = qpos[place.stop : place.stop + 4] + scale * rng.normal(0.0, 1.0, 4)
                qpos[place.stop : place.stop + 4] = turn / np.linalg.norm(turn)
            elif model.jnt_limited[joint]:
                qpos[at] += scale * (rng.uniform(*model.jnt_range[joint]) - qpos[at])
            else:
                qpos[at] += scale * (rng.normal(0.0, 0.3) if kind == 2 else rng.uniform(-np.pi, np.pi))
        return MujocoState(qpos, scale * rng.normal(0.0, 3.0, model.nv))

    def _find_layout(self) -> Layout | None:
        """Return the layout that a few states show, or None where no known one fits."""
        rng = np.random.default_rng(0)
        nq, nv = len(self._start.qpos), len(self._start.qvel)
        states = []
        for _ in range(3):
            noise = MujocoState(rng.uniform(-0.01, 0.01, nq), rng.uniform(-0.1, 0.1, nv))
            self.write(MujocoState(self._start.qpos + noise.qpos, noise.qvel))
            states.append((self.read(), np.asarray(self._base._get_obs(), np.float64)))
        candidates = [plain(hidden) for hidden in range(nq)]
        candidates += [REACHER] if (nq, nv) == (4, 4) else []
        candidates += [DOUBLE_PENDULUM] if (nq, nv) == (3, 3) else []
        for layout in candidates:
            heads = [(layout.encode(state), observation) for state, observation in states]
            if all(np.array_equal(head, observation[: len(head)]) for head, observation in heads):
                return layout
        return None


def _moved(state: MujocoState, at: int, by: float) -> MujocoState:
    qpos = state.qpos.copy()
    qpos[at] += by
    return state._replace(qpos=qpos)


def plain(hidden: int) -> Layout:
    """Return the layout of positions without the first `hidden` ones, then velocities.

    >>> state = MujocoState(np.array([9.0, 1.0, 2.0]), np.array([3.0, 4.0, 5.0]))
    >>> plain(1).encode(state).tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0]
    >>> plain(1).decode(-plain(1).encode(state), state)
    MujocoState(qpos=array([ 9., -1., -2.]), qvel=array([-3., -4., -5.]))
    """

    def encode(state: MujocoState) -> Floats:
        return np.concatenate([state.qpos[hidden:], state.qvel])

    def decode(values: Floats, like: MujocoState) -> MujocoState:
        shown = len(like.qpos) - hidden
        return MujocoState(np.concatenate([like.qpos[:hidden], values[:shown]]), values[shown:].copy())

    return Layout(encode, decode)


def _wound(angles: Floats, like: Floats) -> Floats:
    """Return angles with as many whole turns, either way round, as those of a state: a joint's limit counts them.

    >>> _wound(np.array([-3.0, -3.0]), np.array([3.0, 3.0 - 2 * np.pi])).round(3)
    array([-3.   ,  3.283])
    """
    turns = 2 * np.pi * np.round(like / (2 * np.pi))
    return angles + np.sign(angles * (like - turns)) * turns


def _encode_reacher(state: MujocoState) -> Floats:
    angles, target = state.qpos[:2], state.qpos[2:]
    return np.concatenate([np.cos(angles), np.sin(angles), target, state.qvel[:2]])


def _decode_reacher(values: Floats, like: MujocoState) -> MujocoState:
    angles = _wound(np.arctan2(values[2:4], values[:2]), like.qpos[:2])
    return MujocoState(np.concatenate([angles, values[4:6]]), np.concatenate([values[6:8], like.qvel[2:]]))


def _encode_double_pendulum(state: MujocoState) -> Floats:
    return np.concatenate([state.qpos[:1], np.sin(state.qpos[1:]), np.cos(state.qpos[1:]), state.qvel])


def _decode_double_pendulum(values: Floats, like: MujocoState) -> MujocoState:
    angles = _wound(np.arctan2(values[1:3], values[3:5]), like.qpos[1:])
    return MujocoState(np.concatenate([values[:1], angles]), values[5:8].copy())


REACHER = Layout(_encode_reacher, _decode_reacher)
"""Cosines and sines of two joints, the target's place, the joints' velocities; the target's own velocity is hidden."""

DOUBLE_PENDULUM = Layout(_encode_double_pendulum, _decode_double_pendulum)
"""The cart's place, sines and cosines of two joints, all velocities."""
