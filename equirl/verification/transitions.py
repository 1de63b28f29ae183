"""Logged transitions: what an environment did, as arrays, recorded from random play or read from a file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from equirl.errors import UserError
from equirl.verification.guard import Guard, name_of

Array = NDArray[Any]
Progress = Callable[[str, float], None]
"""Is told what is being done and which fraction of it, from 0 to 1."""

FEWEST = 200
"""Transitions without which nothing is said about a symmetry."""

MOST_BYTES = 4 * 2**30
"""Bytes that the arrays of one log may take; a small file may unpack to far more."""

_REQUIRED = ("observations", "actions", "rewards", "next_observations", "terminated")
_SYNONYMS = {
    "observations": ("obs", "observation", "states", "state"),
    "actions": ("action", "acts"),
    "rewards": ("reward", "rews"),
    "next_observations": ("next_obs", "new_obs", "next_observation", "next_states", "obs_next"),
    "terminated": ("dones", "done", "terminals", "terminations", "terminateds"),
}


@dataclass(frozen=True, eq=False)
class Transitions:
    """N transitions of an environment, each row belonging to one episode; truncation is no part of them.

    Args:
        observations: what was seen, (N, ...).
        actions: what was done, (N,) for a Discrete space, else (N, k).
        rewards: (N,).
        next_observations: what was seen next, (N, ...); of the last step of an episode its final observation.
        terminated: (N,) bool; a time limit does not count.
        episodes: number of the episode, (N,) integers: rows of one episode are not independent of one another.
        observation_space: where observations come from.
        action_space: where actions come from.

    >>> env = gym.make("CartPole-v1")
    >>> logged = Transitions.record(env, 500, seed=0)
    >>> logged.observations.shape, logged.actions.shape, len(logged), logged.episodes[:3].tolist()
    ((500, 4), (500,), 500, [0, 0, 0])
    """

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    terminated: Array
    episodes: Array
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]

    def __len__(self) -> int:
        return len(self.rewards)

    def require(self, fewest: int = FEWEST) -> None:
        """Raise a `UserError` unless there are at least this many transitions."""
        if len(self) < fewest:
            raise UserError(f"{len(self)} transitions: expected at least {fewest} to say anything about a symmetry")

    def rows(self, index: Array) -> Transitions:
        """Return the transitions of these rows, given as numbers or as a mask."""
        names = (*_REQUIRED, "episodes")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def save(self, path: str | Path) -> None:
        """Write the arrays to a compressed .npz file that `load` reads; the spaces are not written."""
        names = (*_REQUIRED, "episodes")
        with Path(path).open("wb") as file:  # NumPy would add a suffix to a path
            np.savez_compressed(file, **{name: getattr(self, name) for name in names})

    @staticmethod
    def load(
        path: str | Path,
        observation_space: gym.Space[Any] | None = None,
        action_space: gym.Space[Any] | None = None,
    ) -> Transitions:
        """Return the transitions of an .npz file with observations, actions, rewards, next_observations, terminated.

        Nothing is unpickled. Without `episodes`, a row continues the episode of the row before it if it begins where
        that one ended. Spaces not given are inferred: integer actions are Discrete, other arrays unbounded, uint8 and
        bool observations with three axes or more are pictures.

        Raises:
            UserError: the file is missing, no .npz, lacks an array, or holds arrays that are unfit (lengths that
                differ, NaN or infinity, objects, fewer than 200 rows, more than 4 GiB).
        """
        arrays = _read(Path(path))
        n = len(arrays["rewards"])
        if n < FEWEST:
            raise UserError(f"{path}: {n} transitions, expected at least {FEWEST} to say anything about a symmetry")
        seen = observation_space or _inferred(arrays["observations"])
        done = action_space or _inferred(arrays["actions"], discrete=True)
        for name, space in (("observations", seen), ("next_observations", seen), ("actions", done)):
            shape = space.shape or ()
            if arrays[name].shape[1:] != shape:
                raise UserError(f"{path}: {name} of shape {arrays[name].shape}: expected ({n}, ...) from {space}")
        if isinstance(done, spaces.Discrete):
            outside = (arrays["actions"] < done.start) | (arrays["actions"] >= done.start + done.n)
            if outside.any():
                raise UserError(f"{path}: action {arrays['actions'][outside][0]}: expected one of {done}")
        return Transitions(**arrays, observation_space=seen, action_space=done)

    @staticmethod
    def record(
        env: gym.Env[Any, Any],
        n: int,
        seed: int = 0,
        policy: Callable[[Any], Any] | None = None,
        progress: Progress | None = None,
    ) -> Transitions:
        """Return n transitions of an environment under uniformly random actions, or those of a policy.

        Args:
            env: the environment, with its wrappers; it is reset first and left as it is in the end.
            n: how many steps.
            seed: of the first reset and of the actions; the same seed gives the same transitions.
            policy: from an observation to an action.
            progress: told from time to time how far it is.

        Raises:
            UserError: a space that is no Box, Discrete, MultiDiscrete or MultiBinary; a reset or a step that raises;
                an observation or a reward that is NaN, infinite or of another shape than the space says.
        """
        _check_spaces(env, n)
        guarded = env if isinstance(env, Guard) else Guard(env)
        seen, done = env.observation_space, env.action_space
        done.seed(seed)
        before, after = (np.empty((n, *(seen.shape or ())), seen.dtype) for _ in range(2))
        actions = np.empty((n, *(done.shape or ())), done.dtype)
        rewards, terminated, episodes = np.empty(n), np.empty(n, np.bool_), np.empty(n, np.int64)
        episode, (now, _) = 0, guarded.reset(seed=seed)
        for i in range(n):
            before[i], episodes[i] = now, episode
            action = policy(now) if policy else done.sample()
            actions[i] = action
            now, rewards[i], terminated[i], truncated, _ = guarded.step(action)
            after[i] = now
            if (terminated[i] or truncated) and i + 1 < n:
                episode, (now, _) = episode + 1, guarded.reset()
            if progress is not None and (i % 500 == 499 or i + 1 == n):
                progress("playing", (i + 1) / n)
        return Transitions(before, actions, rewards, after, terminated, episodes, seen, done)


def _check_spaces(env: gym.Env[Any, Any], n: int) -> None:
    supported = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if n < 1:
        raise UserError(f"{n} transitions: expected at least 1")
    for role, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, supported):
            raise UserError(
                f"{name_of(env)}: the {role} space is {type(space).__name__}: expected Box, Discrete, MultiDiscrete or "
                "MultiBinary"
            )
    space = env.observation_space
    size = 2 * n * int(np.prod(space.shape or ())) * np.dtype(space.dtype).itemsize
    if size > MOST_BYTES:
        raise UserError(
            f"{name_of(env)}: {n} transitions of {space.shape} would take {size / 2**30:.1f} GiB: expected at most "
            f"{MOST_BYTES / 2**30:.0f}; record fewer, or wrap the environment to show smaller observations"
        )


def _read(path: Path) -> dict[str, Array]:
    """Return the arrays of a log, each checked."""
    if not path.is_file():
        raise UserError(f"{path}: expected an .npz file of transitions, and there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise UserError(f"{path}: unpacks to {size / 2**30:.1f} GiB, expected at most {MOST_BYTES / 2**30:.0f} GiB")
        with np.load(path, allow_pickle=False) as data:
            arrays = _named(path, data)
    except UserError:
        raise
    except (OSError, ValueError, MemoryError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise UserError(f"{path}: no .npz file of plain arrays ({type(error).__name__}: {error})") from None
    return _checked(path, arrays)


def _named(path: Path, data: Any) -> dict[str, Array]:
    for name in _REQUIRED:
        if name not in data.files:
            near = [key for key in data.files if key in _SYNONYMS[name]] or get_close_matches(name, data.files, 1)
            hint = f"; did you mean {near[0]!r}? rename it to {name!r}" if near else ""
            found = ", ".join(data.files) or "none"
            raise UserError(f"{path}: no array {name!r} among {found}: expected {', '.join(_REQUIRED)}{hint}")
    return {name: data[name] for name in (*_REQUIRED, "episodes") if name in data.files}


def _checked(path: Path, arrays: dict[str, Array]) -> dict[str, Array]:
    n = len(arrays["rewards"]) if arrays["rewards"].ndim else 0
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path}: {name} hold {array.dtype}: expected numbers")
        if not array.ndim or len(array) != n:
            raise UserError(f"{path}: {name} of shape {array.shape}: expected {n} rows, one for each of the rewards")
        if name not in ("observations", "next_observations", "actions") and array.ndim != 1:
            raise UserError(f"{path}: {name} of shape {array.shape}: expected ({n},)")
        if not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))
            count = len(np.unique(bad[:, 0]))
            raise UserError(
                f"{path}: {name} hold NaN or infinity in {count} of {n} rows, first at index {bad[0].tolist()}: "
                "expected finite numbers"
            )
    before, after = arrays["observations"], arrays["next_observations"]
    if before.shape != after.shape:
        raise UserError(f"{path}: next_observations of shape {after.shape}: expected {before.shape}, as observations")
    arrays["terminated"] = arrays["terminated"].astype(np.bool_)
    arrays["rewards"] = arrays["rewards"].astype(np.float64)
    if "episodes" in arrays:
        arrays["episodes"] = np.unique(arrays["episodes"], return_inverse=True)[1]
    else:
        continues = (after[:-1] == before[1:]).reshape(max(n - 1, 0), -1).all(1) & ~arrays["terminated"][:-1]
        arrays["episodes"] = np.concatenate([np.zeros(min(n, 1), np.int64), np.cumsum(~continues)])
    return arrays


def _inferred(array: Array, discrete: bool = False) -> gym.Space[Any]:
    """Return the widest space that such values may come from."""
    if discrete and array.ndim == 1 and array.dtype.kind in "biu" and len(array) and array.min() >= 0:
        return spaces.Discrete(int(array.max()) + 1)
    if array.dtype.kind == "b" or (array.dtype == np.uint8 and array.ndim >= 4):
        return spaces.Box(0, 1 if array.dtype.kind == "b" else 255, array.shape[1:], np.uint8)
    dtype = array.dtype.type if array.dtype.kind == "f" else np.float64
    return spaces.Box(-np.inf, np.inf, array.shape[1:], dtype)
