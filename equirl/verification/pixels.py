"""Logged pictures as arrays of symbols, and the tables that count what happens to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from equirl.verification.patches import Floats, Ints, Patterns, Table, mixed
from equirl.verification.transitions import Transitions

MOST_SYMBOLS = 200
"""Different cells that pictures may show; symbols are kept in one byte."""

MOST_CELLS = 40 * 40
"""Cells of a picture."""

MOST_VALUES = 4_000_000
"""Cells of all pictures that are read; later transitions are left out."""

MOST_OUTCOMES = 32
"""Different pairs of reward and end; finer rewards are rounded."""

_FEW_EPISODES, _BLOCK = 40, 50
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Pictures:
    """N logged transitions whose pictures are arrays of symbols.

    Args:
        before: symbols of the pictures, (N, H, W).
        after: those of the next pictures, (N, H, W).
        values: the channel values that each symbol stands for, (V, C).
        actions: (N,) from 0.
        outcomes: number of the pair of reward and end, (N,).
        blocks: steps of one number depend on one another, (N,) from 0.
        half: 0 or 1, by block, (N,).
        layout: ``"CHW"``, ``"HWC"``, or ``"HW"`` where pictures have no channels.
        n_actions: how many actions there are.
    """

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    values: NDArray[Any]
    actions: Ints
    outcomes: Ints
    blocks: Ints
    half: Ints
    layout: str
    n_actions: int

    def split(self, seed: int) -> Pictures:
        """Return the same pictures with their blocks halved at random."""
        order = np.random.default_rng(seed).permutation(int(self.blocks.max()) + 1)
        return replace(self, half=order[self.blocks] % 2)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.before.shape[1], self.before.shape[2]

    def moved_symbols(self, channels: tuple[int, ...]) -> Ints:
        """Return the symbol that each becomes when channel c becomes channels[c], -1 where none was seen.

        One entry more, for what lies outside of the picture, stays as it is.
        """
        number = {tuple(value): symbol for symbol, value in enumerate(self.values.tolist())}
        moved = self.values[:, np.argsort(channels)]
        return np.array([number.get(tuple(value), -1) for value in moved.tolist()] + [len(self.values)])


def unfit(transitions: Transitions) -> str:
    """Return why nothing can be said about pictures like these, in a few words; empty if it can."""
    space, shape = transitions.observation_space, transitions.observations.shape[1:]
    if not isinstance(space, spaces.Box) or len(shape) not in (2, 3):
        return f"observations of {space}: expected a Box of pictures, (C, H, W), (H, W, C) or (H, W)"
    if not isinstance(transitions.action_space, spaces.Discrete):
        return f"actions of {transitions.action_space}: expected Discrete ones beside pictures"
    _, _, height, width = _channels_first(transitions.observations[:1], _layout(shape)).shape
    if height * width > MOST_CELLS:
        return f"pictures of {height} x {width} cells: expected at most {MOST_CELLS}; crop or pool them with a wrapper"
    sample = np.linspace(0, len(transitions) - 1, min(len(transitions), 100)).astype(np.int64)
    count = len(np.unique(_cell_keys(_channels_first(transitions.observations[sample], _layout(shape)))))
    return _too_many(count) if count > MOST_SYMBOLS else ""


def _too_many(count: int) -> str:
    return (
        f"cells of {count} or more different values: expected at most {MOST_SYMBOLS}, as in grids and boards; show "
        "what matters as few values with a wrapper"
    )


def encode(transitions: Transitions) -> Pictures | str:
    """Return the pictures of transitions as symbols, or why that is not possible.

    Blocks are whole episodes, or runs of 50 steps where there are fewer than 40 episodes.
    """
    reason = unfit(transitions)
    if reason:
        return reason
    layout = _layout(transitions.observations.shape[1:])
    keep = MOST_VALUES // int(np.prod(_channels_first(transitions.observations[:1], layout).shape[2:]))
    logged = transitions.rows(np.arange(min(keep, len(transitions))))
    n = len(logged)
    both = _channels_first(np.concatenate([logged.observations, logged.next_observations]), layout)
    keys = _cell_keys(both)
    _, where, symbols = np.unique(keys, return_index=True, return_inverse=True)
    if len(where) > MOST_SYMBOLS:
        return _too_many(len(where))
    values = np.moveaxis(both, 1, -1).reshape(-1, both.shape[1])[where]
    cells: NDArray[np.uint8] = symbols.reshape(keys.shape).astype(np.uint8)
    few = len(np.unique(logged.episodes)) < _FEW_EPISODES
    _, blocks = np.unique(np.arange(n) // _BLOCK if few else logged.episodes, return_inverse=True)
    actions = logged.actions.astype(np.int64) - int(logged.action_space.start)  # type: ignore[attr-defined]
    n_actions = int(logged.action_space.n)  # type: ignore[attr-defined]
    return Pictures(cells[:n], cells[n:], values, actions, _outcomes(logged), blocks, blocks % 2, layout, n_actions)


def _layout(shape: tuple[int, ...]) -> str:
    """Return which axis holds the channels, by the rule of SB3: the smallest."""
    if len(shape) == 2:
        return "HW"
    return "CHW" if int(np.argmin(shape)) == 0 else "HWC"


def _channels_first(pictures: NDArray[Any], layout: str) -> NDArray[Any]:
    if layout == "HW":
        return pictures[:, None]
    return pictures if layout == "CHW" else np.moveaxis(pictures, -1, 1)


def _cell_keys(pictures: NDArray[Any]) -> NDArray[np.uint64]:
    """Return 64 bits for the channel values of each cell, (N, H, W)."""
    exact = pictures.astype(np.float64).view(np.uint64) if pictures.dtype.kind == "f" else pictures
    keys = np.zeros((len(pictures), *pictures.shape[2:]), np.uint64)
    for channel in range(pictures.shape[1]):
        keys = mixed(keys * _SPREAD + exact[:, channel].astype(np.uint64), 1)
    return keys


def _outcomes(logged: Transitions) -> Ints:
    rewards = logged.rewards.astype(np.float64)
    if len(np.unique(rewards)) > MOST_OUTCOMES // 2:
        edges = np.unique(np.quantile(rewards, np.linspace(0, 1, MOST_OUTCOMES // 2)[1:-1]))
        rewards = np.searchsorted(edges, rewards).astype(np.float64)
    _, reward = np.unique(rewards, return_inverse=True)
    _, outcomes = np.unique(reward * 2 + logged.terminated, return_inverse=True)
    return outcomes.astype(np.int64)


@dataclass(frozen=True, eq=False)
class Counted:
    """A table with what it counts.

    Args:
        what: for people.
        table: the counts.
        tolerance: differences between probabilities that pass, as a share of what happens; 0 where the table only
            serves as `finer` of another. Ends of episodes depend on more than a patch shows, and so differ a little
            wherever the first states or what the policy did before is not symmetric.
        shape: height and width, where the table's parts are the places of a picture.
        thorough: whether it must cover most of what happens, and leave no doubt.
        finer: the same outcomes given larger patches: what they show to be equal does not differ.
    """

    what: str
    table: Table
    tolerance: float
    shape: tuple[int, int] | None = None
    thorough: bool = False
    finer: Counted | None = None

    def levels(self, values: Floats) -> dict[str, Floats]:
        """Return sums by part, over all, and by row and column where parts are places."""
        levels = {"part": values, "any part": values.sum(0, keepdims=True)}
        if self.shape is not None:
            grid = values.reshape(*self.shape, *values.shape[1:])
            levels |= {"row": grid.sum(1), "column": grid.sum(0)}
        return levels

    def name(self, level: str, number: int) -> str:
        """Return in words where one entry of a level comes from."""
        if level == "any part":
            return self.what
        if level == "part" and self.shape is not None:
            row, column = divmod(number, self.shape[1])
            return f"{self.what}, row {row}, column {column}"
        return f"{self.what}, {'symbol' if level == 'part' else level} {number}"


_LOCAL, _ENDS = 0.1, 0.5


def tables_of(pictures: Pictures) -> list[Counted]:
    """Return the tables: next symbols by patches (of 3 and 5 cells, or by place), rewards and ends, whole pictures."""
    built = []
    for placed in (False, True):
        shape = pictures.shape if placed else None
        where = " at a place" if placed else ""
        small, large = (_patches(pictures, radius, placed) for radius in (1, 2))
        wide = Counted(f"5 x 5 patches{where}", _next_symbols(pictures, *large), 0 if placed else _LOCAL, shape)
        built.append(Counted(f"3 x 3 patches{where}", _next_symbols(pictures, *small), _LOCAL, shape, True, wide))
        ends = [_ends(pictures, *patches) for patches in (small, large)]
        wide_ends = Counted("", ends[1], 0, shape)
        built.append(Counted(f"rewards and ends of 3 x 3 patches{where}", ends[0], _ENDS, shape, False, wide_ends))
        built += [] if placed else [wide]
    whole, seen, (context, then) = _whole(pictures)
    everywhere, sizes = np.zeros(len(seen), np.int64), (1, pictures.n_actions)
    common = np.full(len(seen), np.bincount(pictures.outcomes).argmax())
    contexts = Patterns(whole.patches[seen])
    given = (pictures.actions, pictures.half)
    table = Table(contexts, whole, (context, then, *given), seen, everywhere, sizes)
    built.append(Counted("whole pictures", table, _LOCAL))
    count = int(pictures.outcomes.max()) + 1
    table = Table(contexts, count, (context, pictures.outcomes, *given), common, everywhere, sizes)
    return [*built, Counted("rewards and ends of whole pictures", table, _LOCAL)]


def _patches(pictures: Pictures, radius: int, placed: bool) -> tuple[Patterns, Ints]:
    """Return the distinct patches about all cells, and the number of each cell's patch, (N * H * W,)."""
    (height, width), size = pictures.shape, 2 * radius + 1
    outside = len(pictures.values)
    padded = np.pad(pictures.before, ((0, 0), (radius, radius), (radius, radius)), constant_values=outside)
    keys = np.zeros(pictures.before.shape, np.uint64)
    if placed:
        keys += np.arange(height * width, dtype=np.uint64).reshape(height, width)
    for i in range(size):
        for j in range(size):
            keys = mixed(keys * _SPREAD + padded[:, i : i + height, j : j + width].astype(np.uint64), 1)
    _, where, numbers = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    picture, place = np.divmod(where, height * width)
    y, x = np.divmod(place, width)
    rows, columns = np.arange(size)[:, None], np.arange(size)
    patches = padded[picture[:, None, None], y[:, None, None] + rows, x[:, None, None] + columns]
    return Patterns(patches, places=place if placed else None, shape=pictures.shape), numbers


def _centres(contexts: Patterns) -> Ints:
    middle = contexts.patches.shape[1] // 2
    return contexts.patches[:, middle, middle].astype(np.int64)


def _parts(pictures: Pictures, contexts: Patterns) -> tuple[Ints, tuple[int, int]]:
    """Return the place or else the centre's symbol of each context, and how many of these and of actions there are."""
    if contexts.places.max(initial=-1) >= 0:
        return contexts.places, (pictures.shape[0] * pictures.shape[1], pictures.n_actions)
    return _centres(contexts), (len(pictures.values), pictures.n_actions)


def _next_symbols(pictures: Pictures, contexts: Patterns, numbers: Ints) -> Table:
    cells = pictures.shape[0] * pictures.shape[1]
    outcomes = Patterns(np.arange(len(pictures.values))[:, None, None])
    samples = (
        numbers,
        pictures.after.ravel().astype(np.int64),
        np.repeat(pictures.actions, cells),
        np.repeat(pictures.half, cells),
    )
    return Table(contexts, outcomes, samples, _centres(contexts), *_parts(pictures, contexts))


def _ends(pictures: Pictures, contexts: Patterns, numbers: Ints) -> Table:
    """Count rewards and ends by the patch and the next symbol of every cell that changes or shows what is rare."""
    before, after = pictures.before.ravel(), pictures.after.ravel()
    symbols, cells = len(pictures.values), pictures.shape[0] * pictures.shape[1]
    rare = np.bincount(before, minlength=symbols) <= 3 * len(pictures.actions)
    chosen = np.flatnonzero((before != after) | rare[before])
    pairs, context = np.unique(numbers[chosen] * symbols + after[chosen], return_inverse=True)
    number, then = np.divmod(pairs, symbols)
    placed = contexts.places.max(initial=-1) >= 0
    both = Patterns(
        contexts.patches[number],
        extras=then[:, None],
        places=contexts.places[number] if placed else None,
        shape=contexts.shape,
    )
    step = chosen // cells
    common = int(np.bincount(pictures.outcomes).argmax())
    samples = (context, pictures.outcomes[step], pictures.actions[step], pictures.half[step])
    count = int(pictures.outcomes.max()) + 1
    return Table(both, count, samples, np.full(len(both), common), *_parts(pictures, both))


def _whole(pictures: Pictures) -> tuple[Patterns, Ints, tuple[Ints, Ints]]:
    """Return all distinct pictures, which of them are contexts, and the context and next picture of each step."""
    both = np.concatenate([pictures.before, pictures.after])
    keys = np.zeros(len(both), np.uint64)
    for column in both.reshape(len(both), -1).T:
        keys = mixed(keys * _SPREAD + column.astype(np.uint64), 1)
    _, where, numbers = np.unique(keys, return_index=True, return_inverse=True)
    seen, context = np.unique(numbers[: len(pictures.before)], return_inverse=True)
    return Patterns(both[where]), seen, (context, numbers[len(pictures.before) :])
