"""Returns of a trained agent, under its own method or under each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy

from equirl.checks import equivariance_error, greedy_disagreement
from equirl.errors import UserError, unknown
from equirl.folders import read_settings, zoo_name
from equirl.hyperparameters import keyword_arguments
from equirl.runs import EVALUATION_SEED, Settings, build_model, make_vec_env
from equirl.symmetrizers import METHODS

_SIDE_BY_SIDE = 10  # episodes that are played at once, so that the network reads them in one batch


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
    def interval(self) -> tuple[float, float] | None:
        """The 95% normal interval of the mean; None for a single episode."""
        if len(self.episodes) < 2:
            return None
        half = 1.96 * self.std / (len(self.episodes) - 1) ** 0.5
        return self.mean - half, self.mean + half


def evaluate(model: Any, settings: Settings, episodes: int = 20, seed: int | None = None) -> Returns:
    """Return the returns of greedy episodes, each on a freshly seeded environment: one seed, one set of episodes."""
    if episodes < 1:
        raise UserError(f"episodes {episodes}: expected a whole number of at least 1")
    start = settings.seed + 2 * EVALUATION_SEED if seed is None else seed
    returns: list[float] = []
    for first in range(0, episodes, _SIDE_BY_SIDE):
        count = min(_SIDE_BY_SIDE, episodes - first)
        env = make_vec_env(settings, n_envs=count, seed=start + first, native=False)  # a native one has a single seed
        try:
            found: Any = evaluate_policy(model, env, n_eval_episodes=count, return_episode_rewards=True, warn=False)
        finally:
            env.close()
        returns += [float(value) for value in found[0]]
    return Returns(returns)


def find_agent(path: str | os.PathLike[str]) -> tuple[Settings, Path]:
    """Return the settings that an agent was trained with and the zip of its weights, from its run folder or that zip.

    Raises:
        UserError: no such file, or no run folder around it.
    """
    given = Path(path)
    if not given.exists():
        raise UserError(
            f"no agent at {str(path)!r}: expected a run folder such as logs/dqn/CartPole-v1_1, or a zip in one"
        )
    folder = given if given.is_dir() else given.parent.parent if given.parent.name == "checkpoints" else given.parent
    settings = read_settings(folder)
    return settings, given / f"{zoo_name(settings.env_id)}.zip" if given.is_dir() else given


def load_agent(path: str | os.PathLike[str]) -> tuple[Any, Settings]:
    """Return the agent of a run folder, or of a zip inside one, and the settings it was trained with.

    The model is built anew from config.yml and only weights are read from the zip: nothing is unpickled.

    Raises:
        UserError: no such file, no run folder around it, or weights that do not fit.
    """
    settings, weights = find_agent(path)
    return agent_of(settings, weights), settings


def agent_of(settings: Settings, weights: Path) -> Any:
    """Return a fresh model of these settings with the weights of a zip."""
    model = _fresh_model(settings)
    if not weights.is_file():
        raise UserError(f"no weights at {str(weights)!r}: expected the zip that training writes there")
    try:
        model.set_parameters(weights, device=model.device)
    except Exception as error:  # torch and zipfile raise many kinds; a damaged file is the user's to hear about
        raise UserError(f"weights {str(weights)!r} do not fit: {' '.join(str(error).split())[:200]}") from None
    return model


def compare_methods(path: str | os.PathLike[str], methods: Sequence[str], episodes: int) -> dict[str, Any]:
    """Return an agent's returns under each method, on the same episodes, and the method to use.

    The plain network inside stays the same; only the symmetrizer around it changes, without training.

    Args:
        path: a run folder, or a zip in one.
        methods: names as `methods_for` returns them.
        episodes: how many.
    """
    if episodes < 1:
        raise UserError(f"episodes {episodes}: expected a whole number of at least 1")
    settings, weights = find_agent(path)
    agent = agent_of(settings, weights)
    rows = []
    observations = _observations(settings)
    models = {name: agent if name == settings.method else _with_method(agent, settings, name) for name in methods}
    for method, model in models.items():
        returns = evaluate(model, settings, episodes)
        net, moves = model.q_net, (settings.symmetry.observation, settings.symmetry.action)
        batch = net.movable(model.policy.obs_to_tensor(observations)[0])
        rows.append(
            {
                "method": method,
                "trained": method == settings.method,
                "mean_return": returns.mean,
                "std_return": returns.std,
                "interval": returns.interval,
                "equivariance_error": finite(equivariance_error(net.symmetrized, *moves, batch)),
                "greedy_disagreement": greedy_disagreement(net.symmetrized, *moves, batch),
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
    if own is not None and (best["interval"] is None or best["interval"][0] <= own["mean_return"]):
        return trained
    return str(best["method"])


def methods_for(name: str, trained: str) -> list[str]:
    """Return the methods that ``--methods`` asks for: a list with commas, or ``all`` that this agent can take.

    Raises:
        UserError: an unknown method, or one whose weights this agent did not learn.

    >>> methods_for("all", "identity")
    ['identity', 'equitune', 'equizero']
    """
    if name == "all":
        return [method for method in METHODS if not METHODS[method].reads_features or method == trained]
    methods = list(dict.fromkeys(part.strip() for part in name.split(",")))
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, ["all", *METHODS])
        if METHODS[method].reads_features and method != trained:
            raise UserError(f"method {method!r}: expected an agent trained with it, since its weights are learnt")
    return methods


def _with_method(agent: Any, settings: Settings, method: str) -> Any:
    """Return the same plain network inside another symmetrizer."""
    own = keyword_arguments(settings.hyperparameters.get("policy_kwargs")) or {}
    kept = {key: value for key, value in own.items() if key not in ("symmetrizer_kwargs", "double_selection")}
    model = _fresh_model(
        replace(settings, hyperparameters={**settings.hyperparameters, "method": method, "policy_kwargs": kept})
    )
    state = {key: value for key, value in agent.q_net.state_dict().items() if not key.startswith("symmetrizer.")}
    model.q_net.load_state_dict(state)
    return model


def _fresh_model(settings: Settings) -> Any:
    model: Any = build_model(settings, make_vec_env(settings, n_envs=1), learns=False)
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


def finite(value: float) -> float | None:
    """Return a number that JSON can hold, None in place of infinities and NaN."""
    return float(value) if np.isfinite(value) else None
