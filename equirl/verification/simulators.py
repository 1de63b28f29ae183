"""Environments whose state can be set and moved by a group element: what the strongest check steps.

A `Simulator` is an environment seen as a function from a state, an action and a seed to what one step gives. Which
simulator fits an environment is looked up by the class of the unwrapped environment and its bases, by dotted name, so
that nothing is imported before it is needed; an environment may also bring its own (attribute ``simulator``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pkgutil import resolve_name
from typing import Any, Generic, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces, wrappers
from numpy.typing import NDArray

from equirl.symmetry import Symmetry, registered_symmetries
from equirl.verification.moving import Mover

S = TypeVar("S")


class Outcome(NamedTuple):
    """What one step gives; truncation is no part of it, since time limits are not the environment's dynamics."""

    observation: Any
    reward: float
    terminated: bool


class Simulator(ABC, Generic[S]):
    """An environment whose state can be read, set, and moved by an element of a claimed symmetry.

    Args:
        env: the environment with its wrappers, as agents see it. Wrappers that keep a memory (frame stacks) are refused
            by `simulator_of`.
    """

    precision: float = float(np.finfo(np.float64).eps)
    """Rounding of the environment's own arithmetic, relative; 0 where it computes with whole numbers."""

    mirrors_noise = False
    """Whether `seed` can mirror the random draws; without, equality of laws is tested on many draws."""

    approximate = False
    """Whether `image` is merely near the state meant, so that errors are judged beside those of unmoved actions."""

    complete = False
    """Whether no state at all shows what `image` finds none for; else it merely knows none."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env

    def reset(self, seed: int) -> None:
        """Begin an episode."""
        self.env.reset(seed=seed)

    @abstractmethod
    def read(self) -> S:
        """Return the environment's present state, a value that later steps do not change."""

    @abstractmethod
    def write(self, state: S) -> None:
        """Put the environment into a state; the state stays as it is."""

    @abstractmethod
    def observe(self, state: S) -> Any:
        """Return the observation of a state as agents see it, floats in the state's own precision where possible."""

    @abstractmethod
    def image(self, state: S, symmetry: Symmetry, g: int) -> S | None:
        """Return the state that shows g times the observation of `state`, or None where no such state is known.

        The caller compares `observe` of the image with g times `observe` of the state, so a simulator that knows the
        image of the environment's own symmetry alone may return that for any claim.
        """

    def claimed(self, state: S, symmetry: Symmetry, g: int) -> Any:
        """Return g times the observation of a state: what its image shows if the claim is true."""
        return Mover(symmetry.observation, self.env.observation_space)(g, self.observe(state))

    def scatter(self, rng: np.random.Generator) -> S | None:
        """Return a state far from what a policy meets, drawn over a wide range, or None where that is not known."""
        return None

    def seed(self, seed: int, symmetry: Symmetry | None = None, g: int = 0) -> None:
        """Seed the noise of the next step; with a symmetry and `mirrors_noise`, the image under g of that noise."""
        self.env.unwrapped.np_random = np.random.default_rng(seed)

    def step(self, state: S, action: Any, seed: int, symmetry: Symmetry | None = None, g: int = 0) -> Outcome:
        """Return what the action gives in the state, under the noise of the seed (moved by g where that is known)."""
        self.write(state)
        self.seed(seed, symmetry, g)
        observation, reward, terminated, _, _ = self.env.step(action)
        return Outcome(observation, float(reward), bool(terminated))


class ByObservation(Simulator[Any]):
    """A simulator for environments whose state follows from the observation and a part that no action feels.

    Subclasses give `encode` and `decode`; the image of a state is the decoded image of its observation.
    """

    complete = True

    @abstractmethod
    def encode(self, state: Any) -> Any:
        """Return the observation of a state, before wrappers, in the state's own precision."""

    @abstractmethod
    def decode(self, observation: Any, like: Any) -> Any | None:
        """Return the state of an observation, taking what it does not show from `like`; None where there is none."""

    def observe(self, state: Any) -> Any:
        return observed(self.env, self.encode(state))

    def image(self, state: Any, symmetry: Symmetry, g: int) -> Any | None:
        return self.decode(self.claimed(state, symmetry, g), state)


def observed(env: gym.Env[Any, Any], observation: Any) -> Any:
    """Return an unwrapped environment's observation as the stateless wrappers around it show it."""
    around = []
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.ObservationWrapper):
            around.append(env)
        env = env.env
    for wrapper in reversed(around):
        observation = wrapper.observation(observation)
    return observation


class Settable(ByObservation):
    """An environment whose observation is its state: ``unwrapped.state``, or ``unwrapped.set_observation(x)``.

    `set_observation` may raise whatever it likes for observations that no state has.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._set = getattr(env.unwrapped, "set_observation", None)

    def read(self) -> Any:
        base: Any = self.env.unwrapped
        return _copied(base.get_observation() if self._set else base.state)

    def write(self, state: Any) -> None:
        base: Any = self.env.unwrapped
        if self._set:
            self._set(_copied(state))
        else:
            base.state = type(base.state)(state) if isinstance(base.state, tuple | list) else _copied(state)

    def encode(self, state: Any) -> Any:
        return np.asarray(state) if isinstance(state, tuple | list) else state

    def decode(self, observation: Any, like: Any) -> Any | None:
        if self._set:
            try:
                self._set(_copied(observation))
            except Exception:  # whatever the environment raises, it refuses to look like this
                return None
        return observation

    def scatter(self, rng: np.random.Generator) -> Any | None:
        for _ in range(100):
            drawn = uniform(self.env.unwrapped.observation_space, rng)
            if drawn is None or self.decode(drawn, None) is not None:
                return drawn
        return None


def uniform(space: gym.Space[Any], rng: np.random.Generator) -> Any | None:
    """Return a point of a Box of vectors, uniform where bounded and standard normal elsewhere, else None."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
        return None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = np.isfinite(low) & np.isfinite(high) & (high - low < 1e6)
    inside = rng.uniform(np.where(bounded, low, 0.0), np.where(bounded, high, 0.0))
    return np.where(bounded, inside, np.clip(rng.normal(size=space.shape), low, high))


def _copied(state: Any) -> Any:
    return {key: _copied(part) for key, part in state.items()} if isinstance(state, dict) else np.array(state)


_SIMULATORS: dict[str, str | type[Simulator[Any]]] = {}

_WITHOUT_MEMORY = (
    gym.ObservationWrapper,
    gym.ActionWrapper,
    gym.RewardWrapper,
    wrappers.TimeLimit,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
)
_WITH_MEMORY = (wrappers.DelayObservation, wrappers.NormalizeObservation, wrappers.TimeAwareObservation)
_SB3_WITHOUT_MEMORY = {  # named, since the core does not import SB3
    f"stable_baselines3.common.atari_wrappers:{name}"
    for name in ("ClipRewardEnv", "FireResetEnv", "MaxAndSkipEnv", "NoopResetEnv")
}


def register_simulator(environment: str, simulator: str | type[Simulator[Any]]) -> None:
    """Say which simulator steps environments of a class (and its subclasses), named by dotted path: "module:Class".

    >>> register_simulator("my_package.envs:MyEnv", "my_package.simulators:MySimulator")
    """
    _SIMULATORS[environment] = simulator


def simulator_of(env: gym.Env[Any, Any]) -> Simulator[Any] | None:
    """Return the simulator of an environment, or None where its state cannot be set.

    In this order: a simulator that the environment names itself (attribute ``simulator``, a class), one registered for
    its class or a base of it, ``set_observation`` and ``get_observation``, and an attribute ``state`` that equals the
    observation. A wrapper with a memory, which the state leaves out, rules all of them out, unless it says that it has
    none (attribute ``stateless``).

    >>> type(simulator_of(gym.make("MountainCar-v0"))).__name__
    'Settable'
    """
    outer: Any = env
    while isinstance(outer, gym.Wrapper):
        remembers = not isinstance(outer, _WITHOUT_MEMORY) and _name(type(outer)) not in _SB3_WITHOUT_MEMORY
        if (remembers or isinstance(outer, _WITH_MEMORY)) and not getattr(type(outer), "stateless", False):
            return None
        outer = outer.env
    registered_symmetries()  # the catalogues register simulators too
    base: Any = env.unwrapped
    own = getattr(base, "simulator", None)
    names = [_name(cls) for cls in type(base).__mro__]
    found = own or next((_SIMULATORS[name] for name in names if name in _SIMULATORS), None)
    if found is not None:
        return (resolve_name(found) if isinstance(found, str) else found)(env)
    if hasattr(base, "set_observation") and hasattr(base, "get_observation"):
        return Settable(env)
    return Settable(env) if _shows_its_state(env) else None


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _shows_its_state(env: gym.Env[Any, Any]) -> bool:
    """Whether ``unwrapped.state`` is what the observation shows, after a reset and a step."""
    base: Any = env.unwrapped
    seen = [base.reset(seed=0)[0]]
    if not hasattr(base, "state"):
        return False
    first = _numbers(base.state)
    seen.append(base.step(base.action_space.sample())[0])
    both = zip(seen, (first, _numbers(base.state)), strict=True)
    return all(
        state is not None and np.shape(o) == state.shape and np.allclose(o, state, rtol=1e-5, atol=1e-6)
        for o, state in both
    )


def _numbers(state: Any) -> NDArray[np.float64] | None:
    try:
        return np.array(state, dtype=np.float64)
    except (TypeError, ValueError):
        return None
