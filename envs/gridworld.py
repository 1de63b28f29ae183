"""GridWorld: walk to the goal among walls, under rules that every rotation and mirror image of the square preserves."""

import os
from importlib.util import find_spec
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from equirl.envs._grids import GOAL_REWARD, STEP_REWARD, Grids, State, check_whole
from equirl.errors import UserError, unknown
from equirl.symmetry import Symmetry, resolve_symmetry

__all__ = ["GOAL_REWARD", "STEP_REWARD", "GridWorldEnv", "GridWorldVectorEnv", "State", "register_envs"]

ACTION_NAMES = ("up", "left", "down", "right")


class GridWorldEnv(gym.Env[NDArray[np.uint8], np.int64]):
    """Walk to the goal on an n x n grid among walls.

    Observation: uint8 (3, n, n) of 0 and 255; the channels are walls, goal, agent. Actions: 0 up, 1 left, 2 down,
    3 right; they run counter-clockwise, so a counter-clockwise quarter turn of the grid takes action a to a + 1 mod 4.
    A move into a wall or off the grid leaves the agent where it is. Each step gives -0.01, but the step that reaches
    the goal gives exactly +1.0 and terminates. The registered id `equirl/GridWorld-v0` truncates after 50 steps.
    `info["is_success"]` says after each step whether the goal is reached.

    Reset draws distinct cells for walls, goal and agent uniformly among the layouts whose goal can be reached, so the
    law of the first state is the same in all eight orientations.

    Wind makes the symmetry approximate: a move made from a windy cell, one that does not reach the goal, is followed by
    a push of one cell to the right unless a wall or the edge blocks it. A push onto the goal reaches it too. The windy
    cells are the same in every episode, whatever the walls, and do not turn with the grid; so the registered symmetry
    `equirl/GridWorld-v0` fails on a part of the states, and `check_symmetry` refuses it. The observation does not show
    the wind, but the wind can be learned: it depends on the agent's cell alone. Reset does not reckon with it: it
    puts some goals out of reach, at the default size 2% of them with `wind=0.3` and 20% with `wind=0.5`.

    Args:
        size: cells along a side, n >= 3.
        n_walls: number of walls, from 0 to n * n - 2.
        wind: share of the cells, from 0 to 1, that are windy; for studies of approximate symmetry.
        render_mode: `"rgb_array"`, `"human"` (a pygame window) or None.

    Raises:
        UserError: for an argument outside its range, or an action that is not one of 0 to 3.

    >>> env = GridWorldEnv(size=5, n_walls=3)
    >>> observation, info = env.reset(seed=0)
    >>> observation.shape, (observation > 0).sum(axis=(1, 2)).tolist()
    ((3, 5, 5), [3, 1, 1])
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}  # noqa: RUF012

    action_names = ACTION_NAMES

    def __init__(self, size: int = 9, n_walls: int = 8, wind: float = 0.0, render_mode: str | None = None) -> None:
        self._grids = Grids(1, size, n_walls, wind)
        _check_render_mode(render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.observation_space = Box(0, 255, (3, size, size), np.uint8)
        self.action_space = Discrete(4)
        self._window: Any = None

    @property
    def symmetry(self) -> Symmetry:
        """All eight turns and mirrors of the square, moving pictures and actions together; wind breaks them."""
        return resolve_symmetry("equirl/GridWorld-v0")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Draw a new layout and return its observation; there are no options."""
        super().reset(seed=seed)
        self._grids.sample(self.np_random, np.arange(1))
        if self.render_mode == "human":
            self._show()
        return self._grids.observe()[0], {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the agent by one cell."""
        reached = bool(self._grids.step(np.array([action]))[0])
        if self.render_mode == "human":
            self._show()
        reward = GOAL_REWARD if reached else STEP_REWARD
        return self._grids.observe()[0], reward, reached, False, {"is_success": reached}

    @property
    def state(self) -> State:
        """The state as a batch of one; a mirrored one may be assigned, to step it.

        >>> env = GridWorldEnv(size=3, n_walls=0)
        >>> env.state = State(np.zeros((1, 3, 3), bool), goal=np.array([[0, 2]]), agent=np.array([[0, 0]]))
        >>> env.step(3)[1], env.step(3)[1]
        (-0.01, 1.0)
        """
        return self._grids.get_state()

    @state.setter
    def state(self, state: State) -> None:
        self._grids.set_state(state)

    def get_observation(self) -> NDArray[np.uint8]:
        """Return what the present state looks like."""
        seen: NDArray[np.uint8] = self._grids.observe()[0]
        return seen

    def set_observation(self, observation: NDArray[np.uint8]) -> None:
        """Put the environment into the state that looks like this; a check of the symmetry uses it."""
        walls, *spots = np.asarray(observation) > 0
        goal, agent = (np.argwhere(spot)[:1] for spot in spots)
        self.state = State(walls[None], goal, agent)

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture (32 n, 32 n, 3) with `"rgb_array"`, else None; the window redraws itself at every step."""
        return self._grids.frames()[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the window, if one is open."""
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None

    def _show(self) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting would mix with a command's output
        import pygame

        frame = self._grids.frames()[0]
        if self._window is None:
            pygame.display.init()
            pygame.display.set_caption("GridWorld")
            self._window = pygame.display.set_mode(frame.shape[:2])
            self._clock = pygame.time.Clock()
        self._window.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self.metadata["render_fps"])


class GridWorldVectorEnv(VectorEnv[NDArray[np.uint8], NDArray[np.int64], NDArray[Any]]):
    """N copies of `GridWorldEnv` stepped together, without a loop over the copies.

    Args:
        num_envs: number of copies, N >= 1.
        size: as in `GridWorldEnv`.
        n_walls: as in `GridWorldEnv`.
        wind: as in `GridWorldEnv`.
        max_episode_steps: steps after which an episode is truncated; `gym.make_vec` passes the registered 50.
        autoreset_mode: Gymnasium's `NEXT_STEP` or `SAME_STEP`, as the enum or its value `"NextStep"`, `"SameStep"`.
        render_mode: `"rgb_array"` or None.

    Raises:
        UserError: for an argument outside its range, or actions that are not N of 0 to 3.

    >>> envs = GridWorldVectorEnv(num_envs=4)
    >>> observations, infos = envs.reset(seed=0)
    >>> observations, rewards, terminated, truncated, infos = envs.step(np.array([0, 1, 2, 3]))
    >>> observations.shape, rewards.tolist()
    ((4, 3, 9, 9), [-0.01, -0.01, -0.01, -0.01])
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    action_names = ACTION_NAMES
    _modes: ClassVar = {mode.value: mode for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)}

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 9,
        n_walls: int = 8,
        wind: float = 0.0,
        max_episode_steps: int = 50,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        check_whole("num_envs", num_envs, 1)
        check_whole("max_episode_steps", max_episode_steps, 1)
        _check_render_mode(render_mode, self.metadata["render_modes"])
        mode = autoreset_mode.value if isinstance(autoreset_mode, AutoresetMode) else autoreset_mode
        if mode not in self._modes:
            raise unknown("autoreset_mode", mode, self._modes)
        self._grids = Grids(num_envs, size, n_walls, wind)
        self._same_step = self._modes[mode] is AutoresetMode.SAME_STEP
        self._max_episode_steps = max_episode_steps
        self._elapsed = np.zeros(num_envs, np.int64)
        self._finished = np.zeros(num_envs, np.bool_)  # rows that NEXT_STEP resets at the next step
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self._modes[mode]}
        self.single_observation_space = Box(0, 255, (3, size, size), np.uint8)
        self.single_action_space = Discrete(4)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Draw new layouts for all rows; one seed serves them all, and there are no options."""
        super().reset(seed=seed)
        self._restart(np.ones(self.num_envs, np.bool_))
        self._finished[:] = False
        return self._grids.observe(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Move every agent by one cell; only rows whose episode is over are reset."""
        terminated = self._grids.step(np.asarray(actions))
        self._elapsed += 1
        truncated = self._elapsed >= self._max_episode_steps
        rewards = np.where(terminated, GOAL_REWARD, STEP_REWARD)
        infos: dict[str, Any] = {}
        restarted = terminated | truncated if self._same_step else self._finished
        if restarted.any():
            if self._same_step:
                infos = self._final(restarted, terminated)
            else:
                rewards[restarted], terminated[restarted], truncated[restarted] = 0.0, False, False
            self._restart(restarted)
        if not restarted.all():
            infos |= {"is_success": terminated & ~restarted, "_is_success": ~restarted}
        if not self._same_step:
            self._finished = terminated | truncated
        return self._grids.observe(), rewards, terminated, truncated, infos

    def _restart(self, rows: NDArray[np.bool_]) -> None:
        self._grids.sample(self.np_random, np.flatnonzero(rows))
        self._elapsed[rows] = 0

    def _final(self, done: NDArray[np.bool_], success: NDArray[np.bool_]) -> dict[str, Any]:
        """Return the last observations and infos of the finished rows, in Gymnasium's format."""
        observations = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(done):
            observations[row] = self._grids.inside[row].copy()
        return {
            "final_obs": observations,
            "_final_obs": done,
            "final_info": {"is_success": success.copy(), "_is_success": done.copy()},
            "_final_info": done.copy(),
        }

    @property
    def state(self) -> State:
        """The states of all rows; assigning one starts a new episode in every row, from the state given."""
        return self._grids.get_state()

    @state.setter
    def state(self, state: State) -> None:
        self._grids.set_state(state)
        self._elapsed[:] = 0
        self._finished[:] = False

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return one picture (32 n, 32 n, 3) for each row with `"rgb_array"`, else None."""
        return tuple(self._grids.frames()) if self.render_mode == "rgb_array" else None


def _check_render_mode(mode: str | None, valid: list[str]) -> None:
    if mode is not None and mode not in valid:
        raise unknown("render_mode", mode, valid)
    if mode == "human" and find_spec("pygame") is None:
        raise UserError("render_mode 'human' needs pygame: install it with `pip install pygame-ce`")


def register_envs() -> None:
    """Register `equirl/GridWorld-v0` with Gymnasium; a second call changes nothing."""
    if "equirl/GridWorld-v0" not in gym.registry:
        gym.register(
            "equirl/GridWorld-v0",
            entry_point="equirl.envs.gridworld:GridWorldEnv",
            vector_entry_point="equirl.envs.gridworld:GridWorldVectorEnv",
            max_episode_steps=50,
        )
