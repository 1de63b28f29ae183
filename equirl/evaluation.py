"""Returns of a trained agent, under its own method or under each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy

from equirl.agents.wrapping import symmetrize_model
from equirl.errors import UserError
from equirl.loading import Found, agent_of
from equirl.methods import METHODS, NATIVE, unknown_method
from equirl.runs import EVALUATION_SEED, Settings, make_vec_env
from equirl.symmetrizers import Identity

Progress = Callable[[str, float], None]
"""Told what is being done, and which fraction of it."""
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


def evaluate(
    model: Any, settings: Settings, episodes: int = 20, seed: int | None = None, progress: Progress | None = None
) -> Returns:
    """Return the returns of greedy episodes, each on a freshly seeded environment: one seed, one set of episodes.

    Args:
        model: the agent.
        settings: its run.
        episodes: how many.
        seed: of the first episode; by default far from those of training.
        progress: told what is being done, and which fraction of it.
    """
    if episodes < 1:
        raise UserError(f"episodes {episodes}: expected a whole number of at least 1")
    start = settings.seed + 2 * EVALUATION_SEED if seed is None else seed
    returns: list[float] = []

    def told(local: dict[str, Any], _: dict[str, Any]) -> None:
        if progress is not None and local["done"]:
            ended = len(returns) + len(local["episode_rewards"]) + 1
            progress(f"{ended} of {episodes} episodes", ended / episodes)

    if progress is not None:
        progress(f"{episodes} episodes", 0.0)
    for first in range(0, episodes, _SIDE_BY_SIDE):
        count = min(_SIDE_BY_SIDE, episodes - first)
        env = make_vec_env(settings, n_envs=count, seed=start + first, native=False)  # a native one has a single seed
        try:
            found: Any = evaluate_policy(
                model, env, n_eval_episodes=count, return_episode_rewards=True, warn=False, callback=told
            )
        finally:
            env.close()
        returns += [float(value) for value in found[0]]
    return Returns(returns)


def compare_methods(
    found: Found, methods: Sequence[str], episodes: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Return an agent's returns under each method, on the same episodes, and the method to use.

    The plain network inside stays the same; only the symmetrizer around it changes, without training.

    Args:
        found: the agent, as `find_agent` returns it.
        methods: names as `methods_for` returns them.
        episodes: how many.
        progress: told what is being done, and which fraction of it.
    """
    if episodes < 1:
        raise UserError(f"episodes {episodes}: expected a whole number of at least 1")
    settings, agent = found.settings, agent_of(found)
    rows = []
    seen = agent.policy.obs_to_tensor(observations(agent, settings))[0]
    for number, method in enumerate(methods):

        def told(what: str, fraction: float, method: str = method, before: int = number) -> None:
            if progress is not None:
                progress(f"{method}: {what}", (before + fraction) / len(methods))

        own = method == settings.method
        model = agent if own else symmetrize_model(agent, agent.policy.symmetry, method)
        returns = evaluate(model, settings, episodes, progress=told)
        rows.append(
            {
                "method": method,
                "trained": own,
                "mean_return": returns.mean,
                "std_return": returns.std,
                "interval": returns.interval,
                "equivariance_error": finite(model.policy.equivariance_error(seen)),
                "greedy_disagreement": model.policy.greedy_disagreement(seen),
            }
        )
    return {
        "model": str(found.weights),
        "environment": settings.env_id,
        "algorithm": settings.algo,
        "symmetry": settings.symmetry.name,
        "group": str(settings.symmetry.group),
        "episodes": episodes,
        "plain_greedy_disagreement": agent.policy.greedy_disagreement(seen, plain=True),
        "methods": rows,
        "recommended": recommend(rows, settings.method),
    }


def recommend(rows: Sequence[dict[str, Any]], trained: str) -> str:
    """Return the method to use: the best mean, but the trained method unless another's interval lies above its mean.

    A method whose interval lies below that of identity is never recommended.

    >>> rows = [{"method": "identity", "mean_return": 5.0, "interval": [4.0, 6.0]},
    ...         {"method": "equitune", "mean_return": 5.5, "interval": [4.5, 6.5]}]
    >>> recommend(rows, "identity")
    'identity'
    """
    plain = next((row["interval"] for row in rows if row["method"] == Identity.method), None)
    rows = [row for row in rows if not (plain and row["interval"] and row["interval"][1] < plain[0])]
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
    >>> methods_for("all", "canonical")
    ['identity', 'equitune', 'equizero', 'canonical']
    """
    if name == "all" and trained != NATIVE:
        return [method for method in METHODS if not METHODS[method].learns or method == trained]
    if name in ("all", trained):
        return [trained]
    methods = list(dict.fromkeys(part.strip() for part in name.split(",")))
    if "all" in methods:
        raise UserError(f"methods {name!r}: expected all alone, or names with commas")
    for method in methods:
        if method != trained and method not in METHODS:
            raise unknown_method(method, ["all", *METHODS])
        if method != trained and trained == NATIVE:
            raise UserError(f"method {method!r} for a native agent: expected 'native', which alone its weights fit")
        if method != trained and METHODS[method].learns:
            raise UserError(f"method {method!r}: expected an agent trained with it, since its weights are learnt")
    return methods


def observations(model: Any, settings: Settings, steps: int = 64) -> Any:
    """Return observations of the agent's own play, from several episodes side by side, stacked along the batch."""
    env = make_vec_env(settings, n_envs=_SIDE_BY_SIDE, seed=settings.seed, native=False)
    seen: list[Any] = [env.reset()]
    for _ in range(steps - 1):
        seen.append(env.step(model.predict(seen[-1], deterministic=True)[0])[0])
    env.close()
    if isinstance(seen[0], dict):
        return {key: np.concatenate([part[key] for part in seen]) for key in seen[0]}
    return np.concatenate(seen)


def finite(value: float) -> float | None:
    """Return a number that JSON can hold, None in place of infinities and NaN."""
    return float(value) if np.isfinite(value) else None
