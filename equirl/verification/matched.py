"""Tier 2 for large pictures: do mirrored actions do to the picture what the mirrored picture says.

Games begin as they please, mirrored or not, so equality of laws is the wrong question. Instead A_i is the film of an
episode under random actions a_i, and B_j that of another under g a_j. Each pixel at each time is centred and scaled
over episodes. If g is a symmetry of what actions do, g A_i resembles B_i more than the other B_j:

    T = mean_i <g A_i, B_i> - mean_(i != j) <g A_i, B_j>,    with p-values from shuffling j.

The same with actions left unmoved is the control: what actions do is to resemble less there, or the opposite. The
pixels that stand still must be their own image: that is the static test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from equirl.symmetry import Symmetry
from equirl.verification.moving import Mover
from equirl.verification.transitions import Progress

Floats = NDArray[np.float32]

LARGE = 40
"""Rows and columns above which a picture is large."""

LENGTH, HOLD, EVERY = 160, 6, 5
"""Steps of an episode, steps that an action is held, and steps between the frames that are kept."""

SIGNIFICANT = 0.02
"""p-value of the resemblance up to which films count as mirrored."""

_PIXELS = 20
_DIFFERENT_GREY = 8 / 255  # of the largest value
_STILL = 0.8  # share of the frames in which a pixel has its median value, where it counts as background


@dataclass(frozen=True)
class MatchedTest:
    """What films under matched actions said, element by element where an element moves actions."""

    pairs: int
    steps: int
    resemblance: dict[str, float]  # T
    unmoved: dict[str, float]  # T with actions left as they are
    p_values: dict[str, float]  # of no resemblance, and of no more than with actions left as they are; the larger
    background: float  # share of the pixels that stand still that an element changes

    @property
    def confirms(self) -> bool:
        """Whether every element that moves actions is seen in the films, and its control is not as well."""
        return bool(self.resemblance) and all(
            self.p_values[name] <= SIGNIFICANT and self.stands_out(name) for name in self.resemblance
        )

    def stands_out(self, name: str) -> bool:
        """Whether films resemble their images under an element clearly more than with actions left as they are."""
        return self.resemblance[name] >= 1.5 * self.unmoved[name]


def is_large_picture(space: gym.Space[Any]) -> bool:
    """Whether observations are pictures too large to be compared cell by cell."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3 and sorted(space.shape)[1] > LARGE


def compare_films(env: gym.Env[Any, Any], symmetry: Symmetry, pairs: int, seed: int, told: Progress) -> MatchedTest:
    """Return whether films under mirrored actions are mirrored films.

    Args:
        env: shows large pictures.
        symmetry: the claim.
        pairs: of episodes.
        seed: of resets, actions and shufflings.
        told: what is being done, and which fraction of it.
    """
    rng = np.random.default_rng(seed)
    move, action = Mover(symmetry.observation, env.observation_space), Mover(symmetry.action, env.action_space)
    env.action_space.seed(seed)
    plans = [[env.action_space.sample() for _ in range(-(-LENGTH // HOLD))] for _ in range(pairs)]
    elements = [g for g in range(len(symmetry.group)) if not symmetry.action.is_identity(g)]
    done = steps = 0

    def filmed(moved: Callable[[Any], Any]) -> list[list[Any]]:
        nonlocal done, steps
        films = []
        for plan in plans:
            film, taken = _film(env, [moved(a) for a in plan], int(rng.integers(2**31)))
            films.append(film)
            steps += taken
            done += 1
            told("films under mirrored actions", done / (pairs * (2 + len(elements))))
        return films

    first, again = filmed(lambda a: a), filmed(lambda a: a)
    background = max(_background(first, lambda x, g=g: move(g, x)) for g in range(len(symmetry.group)))  # type: ignore[misc]
    resemblance, unmoved, p_values = {}, {}, {}
    for g in elements:
        name = symmetry.group.names[g]
        mirrored = [[move(g, frame) for frame in film] for film in first]
        claimed = _products(mirrored, filmed(lambda a, g=g: action(g, a)))  # type: ignore[misc]
        beside = _products(mirrored, again)
        resemblance[name], p_resembles = _resemblance(claimed, rng)
        unmoved[name], _ = _resemblance(beside, rng)
        _, p_more = _resemblance(claimed - beside, rng)
        p_values[name] = max(p_resembles, p_more)
    return MatchedTest(pairs, steps, resemblance, unmoved, p_values, background)


def _background(films: list[list[Any]], move: Callable[[Any], Any]) -> float:
    """Return which share of the pixels that stand still, as their images do, have images of another grey."""
    frames = np.stack([frame for film in films for frame in film[::4]])
    median = np.median(frames, axis=0).astype(frames.dtype)
    grey = _DIFFERENT_GREY * max(float(median.max()), 1.0)
    still = np.mean([np.abs(frame.astype(np.float32) - median) <= grey for frame in frames], axis=0) >= _STILL
    both = still & (move(still.astype(np.uint8)) > 0)
    differs = np.abs(move(median).astype(np.float32) - median) > grey
    return float((differs & both).sum() / max(int(both.sum()), 1))


def _film(env: gym.Env[Any, Any], plan: list[Any], seed: int) -> tuple[list[Any], int]:
    """Return every few frames of an episode; one that ended stands still."""
    frame, _ = env.reset(seed=seed)
    frames, over, steps = [frame], False, 0
    for t in range(LENGTH):
        if not over:
            frame, _, terminated, truncated, _ = env.step(plan[t // HOLD])
            over, steps = terminated or truncated, steps + 1
        if (t + 1) % EVERY == 0:
            frames.append(frame)
    return frames, steps


def _products(ours: list[list[Any]], theirs: list[list[Any]]) -> Floats:
    """Return <A_i, B_j> for all pairs of films, each pixel and time centred and scaled over films."""
    left, right = (np.stack([_small(film) for film in films]) for films in (ours, theirs))
    left, right = left - left.mean(0), right - right.mean(0)
    spread = np.sqrt(((left**2).mean(0) + (right**2).mean(0)) / 2)
    used = spread > 1e-3 * max(float(spread.max()), 1e-12)
    left, right = (np.clip(side[:, used] / spread[used], -3, 3) for side in (left, right))
    products: Floats = left @ right.T / max(int(used.sum()), 1)
    return products


def _resemblance(products: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """Return T, and its p-value under shuffled matchings."""
    n = len(products)
    matched = float(np.trace(products)) / n
    shuffled = [float(products[np.arange(n), rng.permutation(n)].mean()) for _ in range(999)]
    others = float(products.sum() - np.trace(products)) / max(n * (n - 1), 1)
    return matched - others, (1 + sum(value >= matched for value in shuffled)) / 1000


def _small(film: list[Any]) -> Floats:
    """Return a film as one row of numbers, its frames averaged over blocks about their centre."""
    frames = np.asarray(film, dtype=np.float32)
    if frames.shape[-1] < frames.shape[1]:
        frames = np.moveaxis(frames, -1, 1)
    for axis in (-1, -2):
        size = frames.shape[axis]
        block = max(1, size // _PIXELS)
        kept = size // block * block
        start = (size - kept) // 2
        frames = np.moveaxis(frames, axis, -1)[..., start : start + kept]
        frames = np.moveaxis(frames.reshape(*frames.shape[:-1], -1, block).mean(-1), -1, axis)
    return frames.reshape(-1)
