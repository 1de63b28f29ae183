"""Which part of an Atari game's frame is its own mirror image, and what the mirror does to the joystick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from equirl.envs.atari import Frame, SymmetricAtari, atari_game
from equirl.errors import unknown

_OPPOSITES = {"left-right": ("LEFT", "RIGHT"), "up-down": ("UP", "DOWN")}


@dataclass(frozen=True)
class Game:
    """The part of a game's frame that `GameFrame` shows.

    Args:
        crop: (top, bottom, left, right) in the frame of 210 x 160, centred on the mirror's axis; score and lives are
            left out where that is possible.
        gauges: rows of the picture that mix with their own left-right mirror image.
    """

    crop: tuple[int, int, int, int]
    gauges: tuple[int, int] = (0, 0)


GAMES: dict[str, Game] = {
    "asterix": Game((24, 152, 0, 160)),
    "asteroids": Game((18, 194, 0, 160)),
    "boxing": Game((38, 174, 24, 136)),
    "breakout": Game((33, 193, 8, 152)),
    "demon_attack": Game((16, 188, 0, 160)),
    "enduro": Game((52, 154, 8, 160)),
    "freeway": Game((22, 184, 8, 160)),
    "ms_pacman": Game((0, 172, 0, 160)),
    "pong": Game((34, 194, 0, 160)),
    "seaquest": Game((44, 188, 8, 160), gauges=(54, 72)),
    "space_invaders": Game((24, 194, 0, 156)),
}
"""The games with a crop, by ALE's own name."""


class GameFrame(SymmetricAtari):
    """`SymmetricAtari` for any game in `GAMES`, with that game's crop.

    Seaquest's gauges of oxygen and divers fill from the left in every world. Their rows show the mean of themselves and
    their mirror image, so that they are still seen and do not tell left from right.

    Raises UserError for a game without a crop, and what `SymmetricAtari` raises.

    >>> GameFrame(gym.make("ALE/Seaquest-v5")).observation_space.shape
    (72, 76, 1)
    """

    def __init__(self, env: gym.Env[Any, Any], **kwargs: Any) -> None:
        """Take the keywords of `SymmetricAtari`, without the crop."""
        name = atari_game(env)._game
        if name not in GAMES:
            raise unknown("Atari game for GameFrame", name, GAMES)
        game = GAMES[name]
        super().__init__(env, crop=game.crop, **kwargs)
        if game.gauges[1]:
            self.env = _SymmetricGauges(self.env, slice(*game.gauges))


class _SymmetricGauges(gym.ObservationWrapper[Frame, int, Frame]):
    """Average some rows of a picture with their left-right mirror image."""

    def __init__(self, env: gym.Env[Frame, int], rows: slice) -> None:
        super().__init__(env)
        self.rows = rows

    def observation(self, observation: Frame) -> Frame:
        shown = observation.copy()
        gauge = observation[self.rows].astype(np.uint16)
        shown[self.rows] = (gauge + gauge[:, ::-1] + 1) // 2
        return shown


def mirrored_actions(meanings: Sequence[str], mirror: str) -> list[int]:
    """Return the permutation of a game's actions under a mirror: the index of each action's mirror image.

    Args:
        meanings: what `env.unwrapped.get_action_meanings()` returns.
        mirror: ``"left-right"`` or ``"up-down"``, which swap two words in the meanings.

    Raises UserError for another mirror, or when the mirror image of an action is missing.

    >>> mirrored_actions(["NOOP", "FIRE", "RIGHT", "LEFT"], "left-right")
    [0, 1, 3, 2]
    """
    if mirror not in _OPPOSITES:
        raise unknown("mirror", mirror, _OPPOSITES)
    one, other = _OPPOSITES[mirror]
    images = [meaning.replace(one, "-").replace(other, one).replace("-", other) for meaning in meanings]
    for image in images:
        if image not in meanings:
            raise unknown(f"action, needed for {mirror},", image, meanings)
    return [list(meanings).index(image) for image in images]
