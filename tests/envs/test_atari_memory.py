"""The Atari simulator: states are set exactly, and the mirrored memory plays the mirrored game."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from equirl.envs import entry_named
from equirl.envs.atari import BreakoutFrame, PongFrame
from equirl.envs.atari_games import GameFrame
from equirl.envs.atari_memory import MIRRORS, AleSimulator
from equirl.verification.simulators import simulator_of

WRAPPERS: dict[str, Any] = {"Pong": PongFrame, "Breakout": BreakoutFrame}
AXIS = {"Pong": 0, "Breakout": 1}
MAPS = {"Pong": [0, 1, 3, 2, 5, 4], "Breakout": [0, 1, 3, 2]}


def simulator(game: str, **options: Any) -> AleSimulator:
    env = gym.make(f"ALE/{game}-v5", obs_type="grayscale", **options)
    return AleSimulator(WRAPPERS[game](env, terminal_on_life_loss=False) if game in WRAPPERS else env)


def states(sim: AleSimulator, count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [sim.scatter(rng) for _ in range(count)]


def image(sim: AleSimulator, state: Any) -> Any:
    return sim.image(state, entry_named(f"ALE/{type(sim.env).__name__.removesuffix('Frame')}-v5").symmetry, 1)


def memory(sim: AleSimulator, state: Any) -> np.ndarray:
    sim.write(state)
    return sim.ale.getRAM().astype(int)


def test_an_atari_game_has_this_simulator() -> None:
    for wrapper, env_id in ((PongFrame, "ALE/Pong-v5"), (GameFrame, "ALE/Seaquest-v5")):
        assert type(simulator_of(wrapper(gym.make(env_id), terminal_on_life_loss=False))) is AleSimulator
    assert simulator_of(PongFrame(gym.make("ALE/Pong-v5"))) is None  # counting lives is a memory outside the console


@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_a_state_gives_the_same_step_again_whatever_was_pressed_before(game: str) -> None:
    sim = simulator(game)
    different = []
    for state in states(sim, 12):  # in some of them the coin says to repeat the last button
        outcomes = []
        for pressed in (0, 2, 3):
            for _ in range(5):
                sim.env.step(pressed)
            outcomes.append(sim.step(state, 2, pressed))
        for again in outcomes[1:]:
            np.testing.assert_array_equal(again.observation, outcomes[0].observation)
            assert again[1:] == outcomes[0][1:]
        np.testing.assert_array_equal(sim.observe(state), sim.observe(state))
        different.append(not np.array_equal(sim.step(state, 3, 0).observation, outcomes[0].observation))
    assert any(different)


@pytest.mark.parametrize(("game", "paddle"), [("pong", [51, 60]), ("breakout", [70, 72])])
def test_mirroring_a_memory_twice_changes_nothing(game: str, paddle: list[int]) -> None:
    sim = simulator(game.title())
    for state in states(sim, 5):
        before = memory(sim, state)
        before[paddle] = 110  # far from where the paddle stops
        once = MIRRORS[game].memory(before)
        assert not np.array_equal(once, before)
        np.testing.assert_array_equal(MIRRORS[game].memory(once), before)
        assert once.min() >= 0
        assert once.max() <= 255


@pytest.mark.parametrize(
    ("game", "low", "high", "total", "frames"), [("pong", 54, 54, 252, 30), ("breakout", 99, 100, 0, 30)]
)
def test_the_ball_flies_on_in_the_mirror(game: str, low: int, high: int, total: int, frames: int) -> None:
    sim = simulator(game.title(), repeat_action_probability=0.0)
    errors = []
    for state in states(sim, 12):
        flights = []
        for start in (state, image(sim, state)):
            sim.write(start)
            flight = []
            for _ in range(frames):
                sim.ale.act(0)
                seen = sim.ale.getRAM().astype(int)
                flight.append(seen[low] if low == high else 256 * seen[low] + seen[high])
            flights.append(np.array(flight))
        size = 256 if low == high else 65536
        gap = (flights[0] + flights[1] - total) % size
        errors.append(np.minimum(gap, size - gap) * 256 / size)
    assert np.median(errors) == 0
    assert (np.array(errors) <= 1).mean() > 0.75


@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_an_image_shows_the_flipped_picture_and_steps_to_the_flipped_next_one(game: str) -> None:
    sim, axis = simulator(game), AXIS[game]
    rng = np.random.default_rng(1)
    shown: list[float] = []
    right: list[float] = []
    wrong: list[float] = []
    change: list[float] = []
    for state in states(sim, 20):
        other, action = image(sim, state), int(rng.choice([2, 3]))
        before = sim.observe(state).astype(float)
        after = sim.step(state, action, 0).observation.astype(float)
        change.append(np.abs(after - before).mean())
        shown.append(np.abs(np.flip(before, axis) - sim.observe(other)).mean())
        for errors, moved in ((right, MAPS[game][action]), (wrong, action)):
            errors.append(np.abs(np.flip(after, axis) - sim.step(other, moved, 0).observation).mean())
    assert np.mean(shown) < 0.4 * np.mean(change)
    assert np.mean(right) < 0.5 * np.mean(change)
    assert np.mean(wrong) > 1.5 * np.mean(right)


def test_breakouts_bricks_are_mirrored_one_by_one() -> None:
    sim = simulator("Breakout")
    for state in states(sim, 5):
        wall, mirrored = (sim.observe(s)[12:31] for s in (state, image(sim, state)))
        np.testing.assert_array_equal(mirrored, wall[:, ::-1])
        assert not np.array_equal(mirrored, wall)


def test_no_image_is_known_without_a_ball_or_of_another_game() -> None:
    sim = simulator("Breakout")
    sim.reset(0)
    playing = sim.read()
    sim.ale.setRAM(MIRRORS["breakout"].ball, 0)
    assert image(sim, sim.read()) is None
    assert image(sim, playing) is not None
    other = simulator("MsPacman")
    other.reset(0)
    symmetry = entry_named("ALE/MsPacman-v5").symmetry
    state = other.read()
    assert other.image(state, symmetry, 1) is None
    assert other.image(state, symmetry, 0) is state
    assert other.scatter(np.random.default_rng(0)) is None
