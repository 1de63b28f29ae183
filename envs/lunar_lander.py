"""A simulator of LunarLander: its whole world, terrain included, is rebuilt from a state, so it can be mirrored."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from equirl.symmetry import Symmetry
from equirl.verification.moving import Mover
from equirl.verification.simulators import ByObservation

Floats = NDArray[np.float64]

# Gymnasium's world: metres, frames a second, and where the parts of the lander are joined.
_WIDTH, _HEIGHT, _FPS = 20.0, 40.0 / 3.0, 50.0
_PAD = _HEIGHT / 4.0
_LEG_AWAY, _LEG_DOWN = 20.0 / 30.0, 18.0 / 30.0


class Body(NamedTuple):
    """Where a body is and how it moves: metres, radians, seconds."""

    x: float
    y: float
    angle: float
    vx: float
    vy: float
    spin: float


class LanderState(NamedTuple):
    """All that a step depends on, but for the impulses that hold the legs: these begin anew in every step."""

    heights: Floats  # the twelve draws that make the terrain
    lander: Body
    legs: tuple[Body, Body]
    contacts: tuple[float, float]  # of the legs with the ground, 0 or 1
    wind: tuple[int, int]  # where the patterns of wind and turbulence are; 0 without wind


class LunarLanderSimulator(ByObservation):
    """Steps LunarLander, discrete or continuous, from any state, with the dispersion of its engines mirrored too.

    The terrain is no part of an observation. The state of a mirrored observation is the mirrored world; the state of
    any other has the terrain of the nearer one of the two, and the legs move along with the lander. Since the world is
    rebuilt before each step, a lander never falls asleep within one: rewards for coming to rest are not seen. Box2D
    solves joints and contacts one after the other, in an order that no mirror changes: in flight both sides agree to
    rounding, in a hard landing not always.
    """

    precision = float(np.finfo(np.float32).eps)
    mirrors_noise = True

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._base: Any = env.unwrapped
        self._heights: Floats = np.zeros(12)

    def reset(self, seed: int) -> None:
        draws = _Draws(np.random.default_rng(seed))
        self._base.np_random = draws
        self.env.reset()
        assert draws.heights is not None
        self._heights = draws.heights

    def read(self) -> LanderState:
        legs = self._base.legs
        contacts = tuple(float(leg.ground_contact) for leg in legs)
        wind = (int(self._base.wind_idx), int(self._base.torque_idx)) if self._base.enable_wind else (0, 0)
        first, second = (_read(leg) for leg in legs)
        return LanderState(self._heights, _read(self._base.lander), (first, second), (contacts[0], contacts[1]), wind)

    def write(self, state: LanderState) -> None:
        self._heights = state.heights
        self._base.np_random = _Draws(np.random.default_rng(0), heights=state.heights)
        self.env.reset()
        self._base.world.warmStarting = False  # the impulses of the reset's own step are no part of the state
        for body, values in zip((self._base.lander, *self._base.legs), (state.lander, *state.legs), strict=True):
            body.transform = ((values.x, values.y), values.angle)
            body.linearVelocity = (values.vx, values.vy)
            body.angularVelocity = values.spin
        for leg, contact in zip(self._base.legs, state.contacts, strict=True):
            # A contact is found anew within the step, but its end would not be: only the wind asks before.
            leg.ground_contact = bool(contact) and self._base.enable_wind
        self._base.game_over = False
        self._base.prev_shaping = _shaping(self.encode(state))
        if self._base.enable_wind:
            self._base.wind_idx, self._base.torque_idx = state.wind

    def seed(self, seed: int, symmetry: Symmetry | None = None, g: int = 0) -> None:
        mirrored = symmetry is not None and self._mirrors(symmetry, g)
        self._base.np_random = _Draws(np.random.default_rng(seed), mirrored=mirrored)

    def _mirrors(self, symmetry: Symmetry, g: int) -> bool:
        """Whether an element takes the lander's place across, to the other side of the pad."""
        across = np.eye(8)[0]
        return bool(Mover(symmetry.observation, self.env.observation_space)(g, across)[0] < 0)

    def encode(self, state: LanderState) -> Floats:
        lander = state.lander
        return np.array(
            [
                (lander.x - _WIDTH / 2) / (_WIDTH / 2),
                (lander.y - _PAD - _LEG_DOWN) / (_HEIGHT / 2),
                lander.vx * (_WIDTH / 2) / _FPS,
                lander.vy * (_HEIGHT / 2) / _FPS,
                lander.angle,
                20.0 * lander.spin / _FPS,
                *state.contacts,
            ]
        )

    def decode(self, observation: Any, like: LanderState) -> LanderState | None:
        values = np.asarray(observation, np.float64)
        if values.shape != (8,):
            return None
        near = min((like, mirrored(like)), key=lambda s: float(np.abs(self.encode(s) - values)[:6].sum()))
        if np.abs(self.encode(near) - values).max() <= 1e-9:
            return near
        lander = Body(
            values[0] * _WIDTH / 2 + _WIDTH / 2,
            values[1] * _HEIGHT / 2 + _PAD + _LEG_DOWN,
            values[4],
            values[2] * _FPS / (_WIDTH / 2),
            values[3] * _FPS / (_HEIGHT / 2),
            values[5] * _FPS / 20.0,
        )
        first, second = (_carried(leg, near.lander, lander) for leg in near.legs)
        contacts = (float(values[6] > 0.5), float(values[7] > 0.5))
        return near._replace(lander=lander, legs=(first, second), contacts=contacts)

    def scatter(self, rng: np.random.Generator) -> LanderState:
        """Return a lander anywhere above a new terrain, in half of the cases just above it, with any attitude."""
        heights = rng.uniform(0.0, _HEIGHT / 2, 12)
        x, near = rng.uniform(2.0, _WIDTH - 2.0), rng.random() < 0.5
        ground = np.interp([x - 1.0, x, x + 1.0], np.linspace(0.0, _WIDTH, 11), _terrain(heights)).max()
        y = ground + rng.uniform(0.5, 0.9) if near else rng.uniform(ground + 1.5, _HEIGHT + 1.0)
        angle = rng.uniform(-0.3, 0.3) if near else rng.uniform(-3.0, 3.0)
        vx, vy = rng.uniform(-5.0, 5.0, 2)
        lander = Body(x, y, angle, vx, vy, rng.uniform(-3.0, 3.0))
        first, second = (_leg(lander, side, rng.uniform(0.35, 0.85)) for side in (-1, 1))
        wind = rng.integers(-9999, 9999, 2) if self._base.enable_wind else (0, 0)
        return LanderState(heights, lander, (first, second), (0.0, 0.0), (int(wind[0]), int(wind[1])))


class _Draws:
    """Stands in for a generator: keeps or gives the terrain, and mirrors the sideways part of the dispersion.

    The dispersion of a step is two draws: along the lander's axis, which a mirror keeps, and across it.
    """

    def __init__(self, rng: np.random.Generator, heights: Floats | None = None, mirrored: bool = False) -> None:
        self.rng, self.heights, self.mirrored = rng, heights, mirrored
        self._count = 0

    def uniform(self, low: float, high: float, size: Any = None) -> Any:
        if size is not None:
            if self.heights is None:
                self.heights = self.rng.uniform(low, high, size)
            return self.heights.copy()  # the environment flattens the pad in place
        self._count += 1
        value = self.rng.uniform(low, high)
        return -value if self.mirrored and self._count % 2 == 0 else value

    def integers(self, low: int, high: int) -> Any:
        return self.rng.integers(low, high)


def mirrored(state: LanderState) -> LanderState:
    """Return the state seen in a mirror that stands on the middle of the pad.

    The last draw of the terrain smooths both of its ends, so it stays; the patterns of the wind are odd functions.
    """
    left, right = (_mirrored(leg) for leg in state.legs)
    return LanderState(
        np.concatenate([state.heights[10::-1], state.heights[11:]]),
        _mirrored(state.lander),
        (right, left),
        (state.contacts[1], state.contacts[0]),
        (-state.wind[0], -state.wind[1]),
    )


def _mirrored(body: Body) -> Body:
    return Body(_WIDTH - body.x, body.y, -body.angle, -body.vx, body.vy, -body.spin)


def _read(body: Any) -> Body:
    place, speed = body.position, body.linearVelocity
    return Body(place.x, place.y, body.angle, speed.x, speed.y, body.angularVelocity)


def _rotated(x: float, y: float, angle: float) -> tuple[float, float]:
    return float(np.cos(angle) * x - np.sin(angle) * y), float(np.sin(angle) * x + np.cos(angle) * y)


def _leg(lander: Body, side: int, spread: float) -> Body:
    """Return a leg that hangs on the lander, spread by an angle, and moves with it."""
    angle = lander.angle - side * spread
    x, y = _rotated(-side * _LEG_AWAY, -_LEG_DOWN, angle)
    speed = (lander.vx - lander.spin * y, lander.vy + lander.spin * x)
    return Body(lander.x + x, lander.y + y, angle, *speed, lander.spin)


def _carried(leg: Body, before: Body, after: Body) -> Body:
    """Return a leg that stays where it is in the lander's own frame while the lander is put elsewhere."""
    turn, spin = after.angle - before.angle, after.spin - before.spin
    x, y = _rotated(leg.x - before.x, leg.y - before.y, turn)
    vx, vy = _rotated(leg.vx - before.vx, leg.vy - before.vy, turn)
    speed = (after.vx + vx - spin * y, after.vy + vy + spin * x)
    return Body(after.x + x, after.y + y, leg.angle + turn, *speed, leg.spin + spin)


def _terrain(heights: Floats) -> Floats:
    """Return the terrain's height at its eleven corners."""
    flat = heights.copy()
    flat[3:8] = _PAD
    return 0.33 * (flat[np.arange(-1, 10)] + flat[:11] + flat[1:])


def _shaping(observation: Floats) -> float:
    """Return the potential whose change the environment gives as reward."""
    place, speed = np.hypot(*observation[:2]), np.hypot(*observation[2:4])
    return float(-100 * (place + speed + abs(observation[4])) + 10 * observation[6:].sum())
