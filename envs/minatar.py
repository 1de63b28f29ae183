"""MinAtar's five games: pictures as SB3's policies see them, and the mirror images of their states.

The games are those of Young and Tian 2019 (arXiv 1903.03176). Nothing here imports the package `minatar`, which the
extra of the same name installs; an environment made by its id does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from equirl.envs._minatar_scatter import SCATTER
from equirl.errors import UserError
from equirl.symmetry import Symmetry
from equirl.verification.simulators import Simulator, observed

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
ACTIONS = "nlurdf"
"""What the games call their actions: nothing, left, up, right, down, fire."""

Game = dict[str, Any]


def register_envs() -> None:
    """Register MinAtar's ids, ``-v0`` with all six actions and ``-v1`` with those a game uses, where nobody has yet.

    >>> register_envs()
    >>> gym.spec("MinAtar/SpaceInvaders-v1").kwargs
    {'game': 'space_invaders', 'use_minimal_action_set': True}
    """
    for game in GAMES:
        for version, minimal in enumerate((False, True)):
            env_id = f"MinAtar/{game.title().replace('_', '')}-v{version}"
            if env_id not in gym.registry:
                kwargs = {"game": game, "use_minimal_action_set": minimal}
                gym.register(env_id, entry_point="minatar.gym:BaseEnv", kwargs=kwargs)


class ChannelsFirst(gym.ObservationWrapper[NDArray[np.uint8], Any, NDArray[np.bool_]]):
    """Show binary pictures, bool (H, W, C), as SB3's CnnPolicy takes them: uint8 (C, H, W) of 0 and 255.

    Raises:
        UserError: the environment shows something else.

    >>> import numpy as np
    >>> class Dots(gym.Env):
    ...     observation_space = spaces.Box(0, 1, (10, 8, 4), np.bool_)
    ...     action_space = spaces.Discrete(2)
    >>> ChannelsFirst(Dots()).observation_space
    Box(0, 255, (4, 10, 8), uint8)
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or space.dtype != np.bool_ or len(space.shape) != 3:
            raise UserError(f"observations {space}: expected binary pictures, a Box of shape (H, W, C) of bool")
        height, width, channels = space.shape
        self.observation_space = spaces.Box(0, 255, (channels, height, width), np.uint8)

    def observation(self, observation: NDArray[np.bool_]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(observation.transpose(2, 0, 1)) * np.uint8(255)


class State(NamedTuple):
    """All that a game's next step depends on, but for its random draws."""

    game: Game  # the attributes of the game that change
    last_action: int  # what a sticky step repeats, a place in ACTIONS
    mirror: tuple[bool, bool] = (False, False)  # left-right, up-down: how it was made from the state that was read


class MinAtarSimulator(Simulator[State]):
    """MinAtar as a function of state, action and seed, with the mirror images of its states.

    The random draws are mirrored as well: where a thing that comes in from the left in one world comes in from the
    right in the other, and sticky steps are the same in both. So one step a side decides, not many.
    """

    precision = 0.0
    mirrors_noise = True
    complete = True  # what none of the known mirrors shows, no state shows that plays on alike

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._outer = env.unwrapped.game  # type: ignore[attr-defined]  # sticky actions
        self._inner = self._outer.env  # the rules
        self._name = str(self._outer.env_name)
        self._draws = np.random.RandomState()
        self._mirror = (False, False)

    def read(self) -> State:
        return State(_copied(vars(self._inner)), int(self._outer.last_action))

    def write(self, state: State) -> None:
        vars(self._inner).update(_copied(state.game))
        self._outer.last_action = state.last_action
        self._mirror = state.mirror

    def observe(self, state: State) -> Any:
        shown = object.__new__(type(self._inner))  # beside the environment, which stays where it is
        vars(shown).update(vars(self._inner))
        vars(shown).update(state.game)
        return observed(self.env, shown.state())

    def image(self, state: State, symmetry: Symmetry, g: int) -> State | None:
        if symmetry.observation.is_identity(g):
            return state
        expected = self.claimed(state, symmetry, g)
        images = (mirrored(self._name, state, *mirror) for mirror in MIRRORS[self._name])
        return next((image for image in images if np.array_equal(self.observe(image), expected)), None)

    def scatter(self, rng: np.random.Generator) -> State:
        last = int(rng.choice(self.env.unwrapped.action_set))  # type: ignore[attr-defined]
        return State({**_copied(vars(self._inner)), **SCATTER[self._name](rng), "terminal": False}, last)

    def seed(self, seed: int, symmetry: Symmetry | None = None, g: int = 0) -> None:
        self._draws.seed(seed % 2**32)
        self._outer.random = self._inner.random = self._draws
        if symmetry is not None and any(self._mirror):
            self._inner.random = _MirroredDraws(self._draws, *self._mirror)


class _MirroredDraws:
    """The draws of a game's rules, mirrored: a `rand` after no other decides left or right, `randint(n)` a row."""

    def __init__(self, draws: np.random.RandomState, flip_x: bool, flip_y: bool) -> None:
        self._draws, self._flip_x, self._flip_y = draws, flip_x, flip_y
        self._direction_next = True

    def rand(self, *shape: int) -> Any:
        drawn = self._draws.rand(*shape)
        if self._flip_x and self._direction_next:
            drawn = (1 - 2**-53) - drawn  # exact, and takes every value that rand may have to another
        self._direction_next = False
        return drawn

    def randint(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        self._direction_next = True
        drawn = self._draws.randint(low, high, size)
        return low - 1 - drawn if self._flip_y else drawn  # only Asterix has this mirror, and draws places below low


_CONSTANT = ("channels", "action_map", "random", "ramping")


def _copied(game: Game) -> Game:
    """Return the attributes that change, so that changes of one copy do not reach the other."""
    return {name: _copy_of(value) for name, value in game.items() if name not in _CONSTANT}


def _copy_of(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    return [list(item) if isinstance(item, list) else item for item in value] if isinstance(value, list) else value


def mirrored(name: str, state: State, flip_x: bool, flip_y: bool) -> State:
    """Return the mirror image of a state of the game, with the sticky action mirrored too.

    Freeway's flip is about the column of the chicken, 4, on the torus: c goes to (8 - c) mod 10.

    >>> paddle = {"pos": 2, "ball_x": 0, "last_x": 1, "ball_dir": 3, "brick_map": np.zeros((10, 10))}
    >>> image = mirrored("breakout", State(paddle, ACTIONS.index("l")), True, False)
    >>> image.game["pos"], image.game["ball_dir"], ACTIONS[image.last_action]
    (7, 2, 'r')
    """
    game = dict(state.game)
    if flip_x:
        game.update(_FLIPS_X[name](game))
    if flip_y:
        game.update(_flip_y_of_asterix(game))
    swaps = str.maketrans(("lr" if flip_x else "") + ("ud" if flip_y else ""), ("rl" * flip_x) + ("du" * flip_y))
    last = ACTIONS.index(ACTIONS[state.last_action].translate(swaps))
    return State(game, last, (state.mirror[0] ^ flip_x, state.mirror[1] ^ flip_y))


def _breakout(game: Game) -> Iterator[tuple[str, Any]]:
    yield from ((name, 9 - game[name]) for name in ("pos", "ball_x", "last_x"))
    yield "ball_dir", [1, 0, 3, 2][game["ball_dir"]]
    yield "brick_map", game["brick_map"][:, ::-1]


def _asterix(game: Game) -> Iterator[tuple[str, Any]]:
    yield "player_x", 9 - game["player_x"]
    yield "entities", [thing and _turned(thing) for thing in game["entities"]]


def _flip_y_of_asterix(game: Game) -> Iterator[tuple[str, Any]]:
    yield "player_y", 9 - game["player_y"]
    yield "entities", [thing and [thing[0], 9 - thing[1], *thing[2:]] for thing in reversed(game["entities"])]


def _freeway(game: Game) -> Iterator[tuple[str, Any]]:
    yield "cars", [[(8 - column) % 10, row, timer, -speed] for column, row, timer, speed in game["cars"]]


def _seaquest(game: Game) -> Iterator[tuple[str, Any]]:
    yield "sub_x", 9 - game["sub_x"]
    yield "sub_or", not game["sub_or"]
    for name in ("f_bullets", "e_bullets", "e_fish", "e_subs", "divers"):
        yield name, [_turned(thing) for thing in game[name]]


def _space_invaders(game: Game) -> Iterator[tuple[str, Any]]:
    yield "pos", 9 - game["pos"]
    yield "alien_dir", -game["alien_dir"]
    yield from ((name, game[name][:, ::-1]) for name in ("f_bullet_map", "e_bullet_map", "alien_map"))


def _turned(thing: list[Any]) -> list[Any]:
    """Mirror a thing that is kept as [column, row, whether it faces right, ...]."""
    column, row, right, *rest = thing
    return [9 - column, row, not right, *rest]


_FLIPS_X: dict[str, Callable[[Game], Iterator[tuple[str, Any]]]] = {
    "asterix": _asterix,
    "breakout": _breakout,
    "freeway": _freeway,
    "seaquest": _seaquest,
    "space_invaders": _space_invaders,
}

MIRRORS = dict.fromkeys(GAMES, ((True, False),)) | {"asterix": ((True, False), (False, True), (True, True))}
"""The mirrors that are known of each game's states, as (left-right, up-down)."""
