"""An environment that fails in one readable line: what every tier steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from equirl.errors import UserError

_PLAIN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class Guard(gym.Wrapper[Any, Any, Any, Any]):
    """Turns what a broken environment does into a `UserError`: raising, NaN, shapes other than its space says.

    >>> Guard(gym.make("Blackjack-v1"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    equirl.errors.UserError: Blackjack-v1: observation space Tuple(...): expected Box...
    """

    stateless = True

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.name = name_of(env)
        self.steps = 0
        parts = env.observation_space
        for role, space in (
            *(("observation", part) for part in (parts.values() if isinstance(parts, spaces.Dict) else [parts])),
            ("action", env.action_space),
        ):
            if not isinstance(space, _PLAIN):
                raise UserError(
                    f"{self.name}: {role} space {space}: expected Box, Discrete, MultiDiscrete, MultiBinary"
                    + (" or a Dict of these" if role == "observation" else "")
                )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            observation, info = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._failure("reset", error, "") from error
        self._check(observation, self.env.observation_space)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            raise self._failure("step", error, f" with action {action}") from error
        self.steps += 1
        if not np.isfinite(float(reward)):
            raise UserError(f"{self.name}: the reward of step {self.steps} is {reward}: expected a finite number")
        self._check(observation, self.env.observation_space)
        return observation, float(reward), bool(terminated), bool(truncated), info

    def _failure(self, what: str, error: Exception, action: str) -> UserError:
        said = f"{type(error).__name__}: {error}"
        return UserError(f"{self.name}: the environment's {what} raised {said} after {self.steps} steps{action}")

    def _check(self, observation: Any, space: gym.Space[Any], key: str = "") -> None:
        where = f"{self.name}: the observation{key} after {self.steps} steps"
        if isinstance(space, spaces.Dict):
            if not isinstance(observation, Mapping) or set(observation) != set(space.spaces):
                raise UserError(f"{where} is {type(observation).__name__}: expected the keys {sorted(space.spaces)}")
            for name, part in space.spaces.items():
                self._check(observation[name], part, f" {name!r}")
            return
        array, expected = np.asarray(observation), space.shape or ()
        if array.dtype.kind not in "biuf" or array.shape != expected:
            raise UserError(f"{where} has shape {array.shape} and type {array.dtype}: expected numbers of {expected}")
        if not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))
            raise UserError(
                f"{where} holds {array[tuple(bad[0])]} at index {bad[0].tolist()} ({len(bad)} of {array.size} entries "
                "are not finite): expected finite numbers"
            )


def name_of(env: gym.Env[Any, Any]) -> str:
    """Return the id of an environment, or the name of its class where it has none.

    >>> name_of(gym.make("CartPole-v1"))
    'CartPole-v1'
    """
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
