"""The catalogued Atari games: their pictures are their own mirror images, and their actions are mirrored by name."""

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from equirl.envs import ENTRIES, Entry
from equirl.envs.atari_games import GAMES, GameFrame, mirrored_actions
from equirl.errors import UserError

ATARI = [entry for entry in ENTRIES if entry.env_id.startswith("ALE/")]
AXES = {"flip_y": 0, "flip_x": 1}
MIRRORS = {"flip_x": "left-right", "flip_y": "up-down"}
UNUSUAL = {  # where the joystick's names do not say what it does
    ("ALE/Pong-v5", "flip_y"): "left-right",  # RIGHT is up
    ("ALE/Asteroids-v5", "flip_y"): "left-right",  # they turn the ship, and a mirror turns it the other way
}
entries = pytest.mark.parametrize("entry", ATARI, ids=lambda entry: entry.name)


def wrapped(entry: Entry) -> Any:
    env = gym.make(entry.env_id, obs_type="grayscale", **entry.kwargs)
    return GameFrame(env, terminal_on_life_loss=False, noop_max=10)


def background(env: Any) -> np.ndarray:
    """The median picture of random play, each action held for four steps."""
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    seen = []
    for step in range(480):
        if step % 4 == 0:
            action = int(rng.integers(env.action_space.n))
        observation, _, terminated, truncated, _ = env.step(action)
        seen.append(observation)
        if terminated or truncated:
            env.reset()
    return np.median(seen, axis=0)


def difference(image: np.ndarray, axis: int) -> float:
    """The percentage of pixels that differ by more than eight grey levels from the flip."""
    return 100 * float((np.abs(image - np.flip(image, axis)) > 8).mean())


def test_every_game_with_a_crop_is_catalogued() -> None:
    assert {re.sub(r"(?<!^)(?=[A-Z])", "_", entry.env_id[4:-3]).lower() for entry in ATARI} == set(GAMES)


@entries
def test_actions_are_mirrored_by_their_names(entry: Entry) -> None:
    meanings = gym.make(entry.env_id).unwrapped.get_action_meanings()
    for flip, actions in entry.generators:
        assert actions == mirrored_actions(meanings, UNUSUAL.get((entry.env_id, flip), MIRRORS[flip]))


@entries
def test_the_background_is_as_symmetric_as_the_note_says(entry: Entry) -> None:
    found = re.search(r"background differs by (?:at most )?([\d.]+)%", entry.note)
    assert found is not None
    limit = float(found[1])
    image = background(wrapped(entry))
    if "Invaders" in entry.env_id:
        image = image[60:]
    for flip, _ in entry.generators:
        if entry.rejected:
            assert difference(image, AXES[flip]) > 0.9 * limit > 10
        else:
            assert difference(image, AXES[flip]) <= limit


@entries
def test_the_symmetry_fits_the_wrapped_game(entry: Entry) -> None:
    env = wrapped(entry)
    observation = env.reset(seed=0)[0]
    assert observation.shape == env.observation_space.shape
    assert observation.dtype == np.uint8
    height, width, channels = observation.shape
    top, bottom, left, right = GAMES[env.unwrapped._game].crop
    assert (2 * height, 2 * width, channels) == (bottom - top, right - left, 1)
    entry.symmetry.fitted(env.observation_space).check_spaces(env.observation_space, env.action_space)


@pytest.mark.parametrize(("game", "one"), [("Seaquest", "RIGHT"), ("Seaquest", "DOWNRIGHT"), ("Asterix", "RIGHT")])
def test_mirrored_actions_move_the_player_to_either_side_of_where_it_would_stay(game: str, one: str) -> None:
    env: Any = GameFrame(gym.make(f"ALE/{game}-v5", obs_type="grayscale", repeat_action_probability=0.0), noop_max=0)
    env.reset(seed=0)
    for _ in range(75):
        env.step(0)
    ale, start = env.unwrapped.ale, env.unwrapped.ale.cloneSystemState()
    meanings = env.unwrapped.get_action_meanings()

    def held(action: int) -> np.ndarray:
        ale.restoreSystemState(start)
        for _ in range(8):
            observation = env.step(action)[0]
        return observation[..., 0].astype(float)

    action = meanings.index(one)
    still = held(0)
    right, left = (
        np.argwhere(np.abs(held(a) - still) > 8).mean(axis=0)
        for a in (action, mirrored_actions(meanings, "left-right")[action])
    )
    assert right[1] > left[1] + 10
    assert abs(right[0] - left[0]) < 1


def test_half_a_turn_of_asteroids_leaves_the_buttons_alone() -> None:
    [entry] = [entry for entry in ATARI if "Asteroids" in entry.env_id]
    action = entry.symmetry.action
    assert len(entry.symmetry.group) == 4
    assert sum(action.is_identity(g) for g in range(4)) == 2


def test_seaquests_gauges_are_seen_on_both_sides() -> None:
    env = GameFrame(gym.make("ALE/Seaquest-v5", obs_type="grayscale"), clip_reward=False)
    frame = np.zeros((210, 160), np.uint8)
    frame[170:175, 49:112] = 200  # the oxygen
    inner = env.env
    shown = inner.observation(inner.env.observation(frame))[..., 0]
    np.testing.assert_array_equal(shown, shown[:, ::-1])
    less = frame.copy()
    less[170:175, 80:112] = 0
    assert not np.array_equal(inner.observation(inner.env.observation(less))[..., 0], shown)
    diver = np.zeros((210, 160), np.uint8)
    diver[100:110, 20:30] = 200
    picture = inner.env.observation(diver)
    np.testing.assert_array_equal(inner.observation(picture), picture)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (lambda: GameFrame(gym.make("CartPole-v1")), "environment 'CartPole-v1': expected an Atari environment"),
        (
            lambda: GameFrame(gym.make("ALE/Tennis-v5")),
            "unknown Atari game for GameFrame 'tennis': expected one of ast",
        ),
        (lambda: mirrored_actions(["NOOP"], "leftright"), "unknown mirror 'leftright': .* did you mean 'left-right'"),
        (lambda: mirrored_actions(["NOOP", "UP"], "up-down"), "unknown action, needed for up-down, 'DOWN': expected"),
    ],
)
def test_mistakes_are_told_in_one_line(mistake: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        mistake()
    assert "\n" not in str(raised.value)
