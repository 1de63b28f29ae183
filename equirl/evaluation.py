"""Returns of a trained agent, under its own method or under each, and films of it playing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy

from equirl.checks import equivariance_error, greedy_disagreement
from equirl.errors import UserError
from equirl.runs import EVALUATION_SEED, Settings, build_model, make_vec_env, read_settings, zoo_name
from equirl.symmetrizers import METHODS


class Returns(NamedTuple):
    """Episode returns and what describes them."""

    episodes: list[float]

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(np.mean(self.episodes))

    @property
    def std(self) -> float:
        """The standard deviation over episodes."""
        return float(np.std(self.episodes))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% normal interval of the mean."""
        half = 1.96 * self.std / max(len(self.episodes) - 1, 1) ** 0.5
        return self.mean - half, self.mean + half


def evaluate(model: Any, settings: Settings, episodes: int = 20, seed: int | None = None) -> Returns:
    """Return the returns of greedy episodes on freshly seeded environments, the same ones for the same seed."""
    if episodes < 1:
        raise UserError(f"episodes {episodes}: expected a whole number of at least 1")
    start = settings.seed + 2 * EVALUATION_SEED if seed is None else seed
    env = make_vec_env(settings, n_envs=1, seed=start)
    try:
        found: Any = evaluate_policy(model, env, n_eval_episodes=episodes, return_episode_rewards=True, warn=False)
    finally:
        env.close()
    return Returns([float(value) for value in found[0]])


def load_agent(path: str | os.PathLike[str]) -> tuple[Any, Settings]:
    """Return the agent of a run folder, or of a zip inside one, and the settings it was trained with.

    The model is built anew from config.yml and only weights are read from the zip: nothing is unpickled.

    Raises:
        UserError: no such file, no run folder around it, or weights that do not fit.
    """
    given = Path(path)
    if not given.exists():
        raise UserError(
            f"no agent at {str(path)!r}: expected a run folder such as logs/dqn/CartPole-v1_1, or a zip in one"
        )
    folder = given if given.is_dir() else given.parent.parent if given.parent.name == "checkpoints" else given.parent
    settings = read_settings(folder)
    return agent_of(settings, given / f"{zoo_name(settings.env_id)}.zip" if given.is_dir() else given), settings


def agent_of(settings: Settings, weights: Path) -> Any:
    """Return a fresh model of these settings with the weights of a zip."""
    small = {"buffer_size": 1} if "buffer_size" in settings.hyperparameters else {}
    env = make_vec_env(settings, n_envs=1)
    model: Any = build_model(settings, env, **small)
    if not weights.is_file():
        raise UserError(f"no weights at {str(weights)!r}: expected the zip that training writes there")
    try:
        model.set_parameters(weights, device=model.device)
    except Exception as error:  # torch and zipfile raise many kinds; a damaged file is the user's to hear about
        raise UserError(f"weights {str(weights)!r} do not fit: {' '.join(str(error).split())[:200]}") from None
    model.policy.set_training_mode(False)
    return model


def compare_methods(path: str | os.PathLike[str], methods: Sequence[str], episodes: int) -> dict[str, Any]:
    """Return an agent's returns under each method, on the same episodes, and the method to use.

    The plain network inside stays the same; only the symmetrizer around it changes, without training.

    Args:
        path: a run folder, or a zip in one.
        methods: names from `equirl.METHODS`; lambda needs an agent that was trained with it.
        episodes: how many.
    """
    agent, settings = load_agent(path)
    weights = Path(path) / f"{zoo_name(settings.env_id)}.zip" if Path(path).is_dir() else Path(path)
    rows = []
    observations = _observations(settings)
    for method in methods:
        chosen = replace(settings, hyperparameters={**settings.hyperparameters, "method": method})
        model = agent if method == settings.method else _with_method(agent, chosen, weights)
        returns = evaluate(model, chosen, episodes)
        symmetry, net = settings.symmetry, model.q_net
        batch, _ = model.policy.obs_to_tensor(observations)
        rows.append(
            {
                "method": method,
                "trained": method == settings.method,
                "mean_return": returns.mean,
                "std_return": returns.std,
                "interval": list(returns.interval),
                "equivariance_error": equivariance_error(net, symmetry.observation, symmetry.action, batch),
                "greedy_disagreement": greedy_disagreement(net, symmetry.observation, symmetry.action, batch),
            }
        )
    return {
        "model": str(weights),
        "environment": settings.env_id,
        "symmetry": settings.symmetry.name,
        "group": str(settings.symmetry.group),
        "episodes": episodes,
        "methods": rows,
        "recommended": recommend(rows, settings.method),
    }


def recommend(rows: Sequence[dict[str, Any]], trained: str) -> str:
    """Return the method to use: the best mean, but the trained method unless another's interval lies above its mean.

    >>> rows = [{"method": "identity", "mean_return": 5.0, "interval": [4.0, 6.0]},
    ...         {"method": "equitune", "mean_return": 5.5, "interval": [4.5, 6.5]}]
    >>> recommend(rows, "identity")
    'identity'
    """
    best = max(rows, key=lambda row: float(row["mean_return"]))
    own = next((row for row in rows if row["method"] == trained), None)
    if own is not None and best["interval"][0] <= own["mean_return"]:
        return trained
    return str(best["method"])


def methods_for(name: str, trained: str) -> list[str]:
    """Return the methods that ``--methods`` asks for: a list with commas, or ``all`` that this agent can take.

    >>> methods_for("all", "identity")
    ['identity', 'equitune', 'equizero']
    """
    if name == "all":
        return [method for method in METHODS if not METHODS[method].reads_features or method == trained]
    return [part.strip() for part in name.split(",")]


def _with_method(agent: Any, settings: Settings, weights: Path) -> Any:
    """Return the same plain network inside another symmetrizer."""
    if METHODS[settings.method].reads_features:
        raise UserError(f"method {settings.method!r}: expected an agent trained with it, since its weights are learnt")
    small = {"buffer_size": 1} if "buffer_size" in settings.hyperparameters else {}
    model: Any = build_model(settings, make_vec_env(settings, n_envs=1), **small)
    kept = {key: value for key, value in agent.q_net.state_dict().items() if not key.startswith("symmetrizer.")}
    model.q_net.load_state_dict(kept)
    model.policy.set_training_mode(False)
    return model


def _observations(settings: Settings, steps: int = 128) -> Any:
    """Return observations seen under random actions, stacked along the batch."""
    env = make_vec_env(settings, n_envs=1, seed=settings.seed)
    env.action_space.seed(settings.seed)
    seen: list[Any] = [env.reset()]
    for _ in range(steps - 1):
        seen.append(env.step(np.array([env.action_space.sample()]))[0])
    env.close()
    if isinstance(seen[0], dict):
        return {key: np.concatenate([part[key] for part in seen]) for key in seen[0]}
    return np.concatenate(seen)


@contextmanager
def _film(path: Path | None, fps: float) -> Iterator[Any]:
    """Yield a function that takes one frame, writing GIF or MP4 beside its place and moving it there at the end."""
    if path is None:
        yield lambda frame: None
        return
    import imageio

    partial = path.with_name(f".partial{path.suffix}")
    options: dict[str, Any] = {"duration": 1000 / fps, "loop": 0} if path.suffix == ".gif" else {"fps": fps}
    try:
        writer: Any = imageio.get_writer(partial, **options)
        with writer:
            yield writer.append_data
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def play(
    path: str | os.PathLike[str], episodes: int = 1, video: Path | None = None, max_steps: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Let an agent play in a window, or film it into a GIF or MP4.

    Args:
        path: a run folder, or a zip in one.
        episodes: how many to play.
        video: the file to write; without it the environment's own window opens.
        max_steps: the most steps in all.
        seed: of the first episode.

    Raises:
        UserError: no agent, or a film of another kind.
    """
    if video is not None and video.suffix not in (".gif", ".mp4"):
        raise UserError(f"video {str(video)!r}: expected a name that ends in .gif or .mp4")
    if video is not None and not video.parent.is_dir():
        raise UserError(f"video {str(video)!r}: expected a folder that exists, and {str(video.parent)!r} does not")
    model, settings = load_agent(path)
    env: Any = make_vec_env(settings, n_envs=1, seed=seed, render_mode="rgb_array" if video else "human")
    fps = float(env.metadata.get("render_fps", 30))
    observation = env.reset()
    returns: list[float] = []
    total = 0.0
    try:
        with _film(video, fps) as show:
            for _ in range(max_steps):
                show(env.render("rgb_array") if video else None)
                action, _ = model.predict(observation, deterministic=True)
                observation, reward, done, infos = env.step(action)
                total += float(reward[0])
                if done[0]:
                    episode: dict[str, Any] = infos[0].get("episode", {})
                    returns.append(float(episode.get("r", total)))
                    total = 0.0
                    if len(returns) >= episodes:
                        break
    finally:
        env.close()
    return {
        "model": str(path),
        "environment": settings.env_id,
        "returns": returns,
        "video": str(video) if video else None,
    }
