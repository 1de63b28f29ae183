"""Atari games as functions of their state: the console's memory is read, set, and mirrored where its map is known."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
from ale_py import Action, ALEState
from ale_py.env import AtariEnv
from numpy.typing import NDArray

from equirl.symmetry import Symmetry
from equirl.verification.simulators import Simulator, observed

Memory = NDArray[np.int64]

_KNOB_RANGE = (27450, 790196)  # the resistances between which ALE turns a paddle controller's knob
_FLUSH = 12  # frames after which the last button is NOOP but for a chance of 0.25 ** 12
_WALL = 40  # frames after which Breakout has drawn a new wall
_SETTLE = 16  # frames after which a paddle has followed its knob
_SERVE = 300  # frames within which a game without any action puts its ball into play


@dataclass(frozen=True)
class Mirror:
    """What is known of a game's memory.

    Args:
        memory: takes the console's 128 bytes, while a ball is in play, to those of the mirror image.
        broad: returns the bytes with ball and bricks drawn at random, in place.
        ball: the byte that is 0 while no ball is in play.
        knob: the sum of a resistance of the paddle controller and of its mirror image.
    """

    memory: Callable[[Memory], Memory]
    broad: Callable[[Memory, np.random.Generator], None]
    ball: int
    knob: int


def mirrored_pong(memory: Memory) -> Memory:
    """Return Pong's memory upside down: ball (54, its speed 56), own paddle (51 and 60), opponent's (50 and 21).

    Bytes hold the row of an object's top plus an offset; a row r of the court becomes 227 - r.

    >>> memory = np.zeros(128, dtype=np.int64)
    >>> memory[[54, 56, 51, 50]] = 100, 2, 120, 90
    >>> mirrored_pong(memory)[[54, 56, 51, 50]].tolist()
    [152, 254, 120, 152]
    """
    image = memory.copy()
    image[54] = 252 - memory[54]
    image[56] = -memory[56] % 256
    image[[51, 60]] = np.clip(240 - memory[[51, 60]], 38, 203)
    image[[50, 21]] = 242 - memory[[50, 21]]
    return image


def _broad_pong(memory: Memory, rng: np.random.Generator) -> None:
    memory[49] = rng.integers(80, 180)  # column of the ball
    memory[54] = rng.integers(56, 197)
    memory[56] = rng.choice([254, 255, 1, 2])
    memory[58] = rng.choice([255, 1])
    memory[[50, 21]] = 2 * rng.integers(28, 94)  # the opponent moves by two rows


# Breakout's wall from left to right, 36 blocks of half a brick: the byte of the lowest row, and the bit.
_BLOCKS = (
    *((30, bit) for bit in (6, 7)),
    *((24, bit) for bit in range(7, -1, -1)),
    *((18, bit) for bit in range(8)),
    *((12, bit) for bit in range(4, 8)),
    *((6, bit) for bit in range(7, -1, -1)),
    *((0, bit) for bit in range(6)),
)


def mirrored_breakout(memory: Memory) -> Memory:
    """Return Breakout's memory left to right: ball (99, its speed 105), paddle (72, its knob 70), bricks (0 to 35).

    Position and speed of the ball are 16-bit numbers, the higher byte first, in 1/256 pixels; a column c of the field
    becomes 159 - c.

    >>> memory = np.zeros(128, dtype=np.int64)
    >>> memory[[99, 105, 72]], memory[30] = (107, 1, 119), 192  # the ball at column 58, and the brick at the lower left
    >>> image = mirrored_breakout(memory)
    >>> image[[99, 105, 72]].tolist(), image[0].item()
    ([149, 255, 119], 48)
    """
    image = memory.copy()
    for high, low in ((99, 100), (105, 106)):
        image[high], image[low] = divmod(-(256 * memory[high] + memory[low]) % 65536, 256)
    image[72] = np.clip(238 - memory[72], 55, 191)
    image[70] = np.clip(230 - memory[70], 0, 184)
    for row in range(6):
        blocks = [memory[byte + row] >> bit & 1 for byte, bit in _BLOCKS]
        for (byte, bit), block in zip(_BLOCKS, reversed(blocks), strict=True):
            image[byte + row] = image[byte + row] & ~(1 << bit) | block << bit
    return image


def _broad_breakout(memory: Memory, rng: np.random.Generator) -> None:
    memory[[99, 100]] = rng.integers(60, 192), 0
    memory[[101, 102]] = rng.integers(104, 170), 0  # row of the ball, between bricks and paddle
    memory[[103, 104]] = rng.choice([255, 1]), 0
    memory[[105, 106]] = rng.choice([254, 255, 1, 2]), 0
    for row in range(6):
        for block in range(0, len(_BLOCKS), 2):
            if rng.random() < 0.3:
                for byte, bit in _BLOCKS[block : block + 2]:
                    memory[byte + row] &= ~(1 << bit)


MIRRORS: dict[str, Mirror] = {
    "pong": Mirror(mirrored_pong, _broad_pong, ball=54, knob=904_000),
    "breakout": Mirror(mirrored_breakout, _broad_breakout, ball=101, knob=1_036_800),
}
"""The games whose memory is known well enough to mirror it, by ALE's own name."""


class AleSimulator(Simulator[ALEState]):
    """An Atari game whose state is the console's, with the coins of its sticky actions.

    `image` mirrors the memory of the games in `MIRRORS`, about the axis of their wrappers here, whatever the claim; for
    other games it is None. The coins are part of the state and pictures do not depend on them, so a state and its image
    meet the same ones. Every state counts as if NOOP had been pressed last.

    An image is as good as the game allows. The ball flies on exactly; the own paddle ends up to a pixel off, since
    games round up; Pong's opponent drifts, since it aims ten rows off where its mirror image would.

    The console draws while it computes, so a memory has no picture yet: `observe` shows the state one frame of NOOP
    later. That frame's own dynamics are thereby part of what is compared.

    >>> env = gym.make("ALE/Pong-v5")
    >>> simulator = AleSimulator(env)
    >>> simulator.reset(seed=0)
    >>> state = simulator.read()
    >>> simulator.step(state, 2, seed=0).observation.shape
    (210, 160, 3)
    """

    mirrors_noise = True
    approximate = True

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.game = cast(AtariEnv, env.unwrapped)
        self.ale = self.game.ale
        self._seeded = False
        self._sticky = self.ale.getFloat("repeat_action_probability") > 0

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self._seeded = True

    def read(self) -> ALEState:
        return self.ale.cloneSystemState()

    def write(self, state: ALEState) -> None:
        if self._sticky:  # the last button is no part of ALE's states
            for _ in range(_FLUSH):
                self.ale.act(Action.NOOP)
        self.ale.restoreSystemState(state)

    def observe(self, state: ALEState) -> Any:
        self.write(state)
        self.ale.act(Action.NOOP)
        return observed(self.env, self.game._get_obs())

    def image(self, state: ALEState, symmetry: Symmetry, g: int) -> ALEState | None:
        if g == 0:
            return state
        mirror = MIRRORS.get(self.game._game)
        if mirror is None:
            return None
        self.ale.restoreSystemState(state)
        memory = self._memory()
        if memory[mirror.ball] == 0:
            return None  # where the next ball will fly is hidden in bytes that nobody has explained
        return self._put(state, mirror.memory(memory), mirror.knob - _knob(state))

    def scatter(self, rng: np.random.Generator) -> ALEState | None:
        mirror = MIRRORS.get(self.game._game)
        if mirror is None:
            return None
        if self._seeded:
            self.env.reset()  # a seed takes ALE 30 times as long, since it loads the game again
        else:
            self.reset(int(rng.integers(2**31)))
        for _ in range(_SERVE):
            if self._memory()[mirror.ball]:
                break
            self.ale.act(Action.FIRE)
        for _ in range(_WALL):
            self.ale.act(Action.NOOP)
        memory = self._memory()
        mirror.broad(memory, rng)
        state = self._put(self.read(), memory, int(rng.integers(*_KNOB_RANGE)))
        self.write(state)
        for _ in range(_SETTLE):
            self.ale.act(Action.NOOP)
        return self.read()

    def _memory(self) -> Memory:
        return self.ale.getRAM().astype(np.int64)

    def _put(self, state: ALEState, memory: Memory, knob: int) -> ALEState:
        """Return the state with another memory and another resistance of the knob."""
        data = struct.pack("<i", min(max(knob, _KNOB_RANGE[0]), _KNOB_RANGE[1])) + bytes(state.__getstate__())[4:]
        self.ale.restoreSystemState(ALEState(data))
        for address in np.flatnonzero(memory != self._memory()):
            self.ale.setRAM(int(address), int(memory[address]))
        return self.ale.cloneSystemState()

    def seed(self, seed: int, symmetry: Symmetry | None = None, g: int = 0) -> None:
        """Leave the noise alone: the coins to come are part of the state."""


def _knob(state: ALEState) -> int:
    """Return the resistance of the left paddle controller, with which ALE's states begin."""
    return int(struct.unpack_from("<i", bytes(state.__getstate__()))[0])
