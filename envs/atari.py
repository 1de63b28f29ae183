"""Atari frames whose mirror image is again a frame: the usual wrapper, cropped about the game's mirror axis."""

from collections.abc import Sequence
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.env import AtariEnv
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from stable_baselines3.common.atari_wrappers import (
    ClipRewardEnv,
    EpisodicLifeEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
    StickyActionEnv,
)

from equirl.errors import UserError

gym.register_envs(ale_py)  # the import above registers the games; this says so to readers and linters

Frame = NDArray[np.uint8]


def picture(frame: Frame, crop: Sequence[int]) -> Frame:
    """Return the grey crop of a frame at half its size, by integer arithmetic that commutes exactly with flips.

    `y = (299 R + 587 G + 114 B + 500) // 1000` is ALE's own grey on every colour of its palette, so colour and
    grayscale frames give the same picture; then each 2 x 2 block becomes `(sum + 2) // 4`, which does not depend on the
    order of its four pixels. `frame` is uint8 (H, W) or (H, W, 3), `crop` is (top, bottom, left, right), and the result
    is uint8 ((bottom - top) / 2, (right - left) / 2, 1).

    >>> frame = np.arange(24, dtype=np.uint8).reshape(4, 6)
    >>> picture(frame, (0, 4, 2, 6))[..., 0]
    array([[ 6,  8],
           [18, 20]], dtype=uint8)
    """
    top, bottom, left, right = crop
    grey = frame[top:bottom, left:right]
    if grey.ndim == 3:
        # One channel at a time: half the time of a product with the vector of weights.
        light = grey[..., 0] * np.uint32(299)
        light += grey[..., 1] * np.uint32(587)
        light += grey[..., 2] * np.uint32(114)
        light += np.uint32(500)
        grey = (light // np.uint32(1000)).astype(np.uint8)
    rows = grey[0::2].astype(np.uint16) + grey[1::2]
    blocks = rows[:, 0::2] + rows[:, 1::2]
    half: Frame = ((blocks + 2) >> 2).astype(np.uint8)
    return half[..., None]


class SymmetricAtari(gym.Wrapper[Frame, int, Frame, int]):
    """The usual Atari preprocessing with a picture that commutes with the flip about the middle of `crop`.

    From the inside out: sticky actions, up to `noop_max` no-ops on reset (steps of the wrapped environment), frame
    skip, end of episode on a lost life, FIRE on reset where the game has it, the `picture`, rewards clipped to their
    sign. The 84 x 84 resize of SB3's `AtariWrapper` would put the game's axis off centre; this crops and averages 2 x 2
    instead. Resets press NOOP and FIRE only, which flips leave alone: SB3's `FireResetEnv` goes on with action 2,
    RIGHT, whose mirror image is LEFT. Observations are uint8 (height, width, 1) in 0..255.

    `frame_skip` defaults to 4, or to 1 where the environment already skips (`ALE/*-v5` does). The maximum over the
    last two frames against flicker is possible only where the skipping happens here, as with `*NoFrameskip-v4`.
    With `terminal_on_life_loss`, as in SB3, `reset` begins a new game only after game over, and before that plays on.
    Monitor belongs inside, where `make_vec_env` puts it, so that returns are of whole games and unclipped.

    Raises UserError when `env` is not an unprocessed Atari environment or an argument is out of range.

    >>> env = SymmetricAtari(gym.make("ALE/MsPacman-v5"), crop=(0, 172, 0, 160))
    >>> env.observation_space.shape
    (86, 80, 1)
    """

    stateless = True  # as far as its own layers go: simulators read the console's state

    def __init__(
        self,
        env: gym.Env[Any, Any],
        crop: Sequence[int],
        *,
        terminal_on_life_loss: bool = True,
        clip_reward: bool = True,
        noop_max: int = 30,
        frame_skip: int | None = None,
        action_repeat_probability: float = 0.0,
    ) -> None:
        """Check every argument, then stack the wrappers."""
        game = _unprocessed(env)
        box = _checked_crop(game, crop)
        skip = _checked_skip(env, game, frame_skip)
        if noop_max < 0:
            raise UserError(f"noop_max {noop_max!r}: expected 0 or more")
        if not 0.0 <= action_repeat_probability < 1.0:
            raise UserError(f"action_repeat_probability {action_repeat_probability!r}: expected 0 or more and below 1")

        if action_repeat_probability > 0.0:
            env = StickyActionEnv(env, action_repeat_probability)
        if noop_max > 0:
            env = NoopResetEnv(env, noop_max=noop_max)
        if skip > 1:
            env = MaxAndSkipEnv(env, skip=skip)
        if terminal_on_life_loss:
            env = EpisodicLifeEnv(env)
        meanings = game.get_action_meanings()
        if "FIRE" in meanings:
            env = _FireOnReset(env, meanings.index("FIRE"))
        env = _Picture(env, box)
        if clip_reward:
            env = ClipRewardEnv(env)
        super().__init__(env)


class PongFrame(SymmetricAtari):
    """`SymmetricAtari` for Pong: the court without its walls, mirrored up-down about row 114, as (80, 80, 1).

    The flip swaps RIGHT (up) with LEFT (down). The picture is symmetric but the agent's paddle reaches two rows further
    down than up; both ends lie behind the walls.

    >>> PongFrame(gym.make("PongNoFrameskip-v4")).observation_space.shape
    (80, 80, 1)
    """

    def __init__(self, env: gym.Env[Any, Any], **kwargs: Any) -> None:
        """Take the keywords of `SymmetricAtari`, without the crop."""
        _check_game(env, "pong", type(self).__name__)
        super().__init__(env, crop=(34, 194, 0, 160), **kwargs)


class BreakoutFrame(SymmetricAtari):
    """`SymmetricAtari` for Breakout: bricks to paddle between the walls, mirrored left-right, as (80, 72, 1).

    The flip swaps RIGHT with LEFT. The side walls never change and end in different colours, so they are cropped away.
    The picture is symmetric but the paddle's reach is not: it slides 8 pixels behind the right wall, never the left.

    >>> BreakoutFrame(gym.make("BreakoutNoFrameskip-v4")).observation_space.shape
    (80, 72, 1)
    """

    def __init__(self, env: gym.Env[Any, Any], **kwargs: Any) -> None:
        """Take the keywords of `SymmetricAtari`, without the crop."""
        _check_game(env, "breakout", type(self).__name__)
        super().__init__(env, crop=(33, 193, 8, 152), **kwargs)


class _Picture(gym.ObservationWrapper[Frame, int, Frame]):
    """Show the `picture` of each frame."""

    def __init__(self, env: gym.Env[Any, Any], crop: tuple[int, int, int, int]) -> None:
        super().__init__(env)
        self.crop = crop
        top, bottom, left, right = crop
        self.observation_space = Box(0, 255, ((bottom - top) // 2, (right - left) // 2, 1), np.uint8)

    def observation(self, observation: Frame) -> Frame:
        return picture(observation, self.crop)


class _FireOnReset(gym.Wrapper[Frame, int, Frame, int]):
    """Press FIRE once after a reset, for games that wait for it."""

    stateless = True

    def __init__(self, env: gym.Env[Any, Any], fire: int) -> None:
        super().__init__(env)
        self.fire = fire

    def reset(self, **kwargs: Any) -> tuple[Frame, dict[str, Any]]:
        self.env.reset(**kwargs)
        observation, _, terminated, truncated, info = self.env.step(self.fire)
        if terminated or truncated:
            return self.env.reset(**kwargs)
        return observation, info


def _label(env: gym.Env[Any, Any]) -> str:
    return repr(env.spec.id if env.spec else type(env.unwrapped).__name__)


def atari_game(env: gym.Env[Any, Any]) -> AtariEnv:
    """Return the Atari game inside an environment's wrappers, or raise a UserError where there is none."""
    game = env.unwrapped
    if not isinstance(game, AtariEnv):
        raise UserError(
            f"environment {_label(env)}: expected an Atari environment such as 'ALE/Pong-v5' or 'PongNoFrameskip-v4'"
        )
    return game


def _check_game(env: gym.Env[Any, Any], expected: str, wrapper: str) -> None:
    found = atari_game(env)._game
    if found != expected:
        raise UserError(f"{wrapper} on the Atari game {found!r}: expected {expected!r}; SymmetricAtari takes any crop")


def _unprocessed(env: gym.Env[Any, Any]) -> AtariEnv:
    game = atari_game(env)
    height, width = game.ale.getScreenDims()
    seen = env.observation_space.shape
    if seen not in {(height, width), (height, width, 3)}:
        raise UserError(
            f"observations of shape {seen} from {_label(env)}: expected whole frames, ({height}, {width}, 3) or "
            f"({height}, {width}), so obs_type 'rgb' or 'grayscale' and no other picture wrapper inside"
        )
    if not isinstance(env.action_space, Discrete):
        raise UserError(f"actions {env.action_space} of {_label(env)}: expected Discrete, so continuous=False")
    return game


def _checked_crop(game: AtariEnv, crop: Sequence[int]) -> tuple[int, int, int, int]:
    height, width = game.ale.getScreenDims()
    if len(crop) == 4:
        top, bottom, left, right = crop
        inside = 0 <= top < bottom <= height and 0 <= left < right <= width
        if inside and (bottom - top) % 2 == 0 and (right - left) % 2 == 0:
            return top, bottom, left, right
    raise UserError(
        f"crop {tuple(crop)}: expected (top, bottom, left, right) inside a frame of {height} rows and {width} columns, "
        "with an even number of rows and of columns"
    )


def _checked_skip(env: gym.Env[Any, Any], game: AtariEnv, frame_skip: int | None) -> int:
    inner = game._frameskip
    if frame_skip is None:
        return 4 if inner == 1 else 1
    if frame_skip < 1:
        raise UserError(f"frame_skip {frame_skip!r}: expected 1 or more")
    if frame_skip > 1 and inner != 1:
        raise UserError(
            f"frame_skip {frame_skip!r} on {_label(env)}, which itself skips {inner}: expected 1, or an environment "
            "made with frameskip=1"
        )
    return frame_skip
