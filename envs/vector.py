"""A Gymnasium vector environment, seen by Stable-Baselines3 as one of its own."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from equirl.errors import UserError


class VectorEnvAdapter(VecEnv):
    """Make SB3's `VecEnv` of a Gymnasium vector environment.

    The environment must reset finished rows in the step that ends them (`AutoresetMode.SAME_STEP`), as SB3 does. The
    info of a finished row is its final info with `terminal_observation`; the info of its reset is in `reset_infos`.
    `get_attr` and its kin ask each sub-environment where the vector environment has them (`SyncVectorEnv`,
    `AsyncVectorEnv`); a native one answers once, for all rows.

    Raises:
        UserError: if the environment resets in another mode.

    >>> from equirl.envs.gridworld import GridWorldVectorEnv
    >>> env = VectorEnvAdapter(GridWorldVectorEnv(num_envs=4, autoreset_mode="SameStep"))
    >>> env.reset().shape
    (4, 3, 9, 9)
    >>> observations, rewards, dones, infos = env.step(np.zeros(4, int))
    >>> infos[0]
    {'is_success': False, 'TimeLimit.truncated': False}
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            name = mode.name if isinstance(mode, AutoresetMode) else repr(mode)
            raise UserError(f"autoreset_mode of {env} is {name}: expected SAME_STEP, the way SB3 resets")
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.spec = env.spec
        self.metadata = {**env.metadata, **self.metadata}

    def reset(self) -> VecEnvObs:
        """Reset all rows with the seed and the options given before, and return their observations."""
        options = self._options[0]
        if any(other != options for other in self._options):
            raise UserError("reset options differ between rows: expected the same for all")
        observations, infos = self.env.reset(seed=self._seeds[0], options=options or None)
        self.reset_infos = _rows(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations  # type: ignore[no-any-return]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all rows and return SB3's observations, rewards, dones and infos."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = terminated | truncated
        final_obs, final_infos = infos.pop("final_obs", None), infos.pop("final_info", {})
        rows = _rows(infos, self.num_envs)
        if dones.any():
            finals = _rows(final_infos, self.num_envs)
            for row in np.flatnonzero(dones):
                self.reset_infos[row] = rows[row]
                rows[row] = {**finals[row], "terminal_observation": final_obs[row]}
        for info, cut in zip(rows, (truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = cut
        return observations, rewards.astype(np.float32), dones, rows

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one picture for each row; all None unless the render mode is `"rgb_array"`."""
        frames = self.env.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if frames is None else list(frames)  # type: ignore[arg-type]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute for each of the rows asked for."""
        base: Any = self.env.unwrapped
        if hasattr(base, "get_attr"):
            values = base.get_attr(attr_name)
        else:
            single = {"observation_space": "single_observation_space", "action_space": "single_action_space"}
            values = [getattr(base, single.get(attr_name, attr_name))] * self.num_envs
        return [values[row] for row in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute in all rows; a part of them cannot be addressed."""
        self._check_all_rows("set_attr", indices)
        base: Any = self.env.unwrapped
        if hasattr(base, "set_attr"):
            base.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(base, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method in all rows and return its results; a part of them cannot be addressed."""
        self._check_all_rows("env_method", indices)
        base: Any = self.env.unwrapped
        if hasattr(base, "call"):
            return list(base.call(method_name, *args, **kwargs))
        return [getattr(base, method_name)(*args, **kwargs)] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return for each row whether its sub-environment carries the wrapper; a native environment has none."""
        envs = getattr(self.env.unwrapped, "envs", None)
        wrapped = [is_wrapped(env, wrapper_class) for env in envs] if envs else [False] * self.num_envs
        return [wrapped[row] for row in self._get_indices(indices)]

    def _check_all_rows(self, caller: str, indices: VecEnvIndices) -> None:
        rows = sorted(set(self._get_indices(indices)))
        if rows != list(range(self.num_envs)):
            raise UserError(f"{caller} for rows {rows}: expected all {self.num_envs} rows")


def _rows(infos: dict[str, Any], num: int) -> list[dict[str, Any]]:
    """Split a vector environment's infos, where the mask `_key` says which rows have `key`, into one dict per row."""
    rows: list[dict[str, Any]] = [{} for _ in range(num)]
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if mask is None:
            continue
        if isinstance(values, dict):
            values = _rows(values, num)
        elif isinstance(values, np.ndarray) and values.ndim == 1:
            values = values.tolist()
        for row in np.flatnonzero(mask).tolist():
            rows[row][key] = values[row]
    return rows
