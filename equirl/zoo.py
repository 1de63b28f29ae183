"""Hyper-parameters of agents that RL Zoo trained, some with an SB3 of years ago, as today's SB3 takes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from equirl.config import validate
from equirl.errors import UserError
from equirl.hyperparameters import keyword_arguments

# What SB3 took once, by where it stood.
_GONE = {
    "": ("create_eval_env", "remove_time_limit_termination", "n_episodes_rollout"),
    "policy_kwargs": ("sde_net_arch",),
    "replay_buffer_kwargs": ("online_sampling", "max_episode_length"),
}
# Packages and classes that have moved since; the first that a path begins with counts.
_MOVED = {
    "gym.": "gymnasium.",
    "gym_minigrid.": "minigrid.",
    "utils.wrappers.": "rl_zoo3.wrappers.",
    "utils.callbacks.": "rl_zoo3.callbacks.",
}
_RENAMED = {"GrayScaleObservation": "GrayscaleObservation"}
_WRAPPERS = "gymnasium.wrappers."


def read_zoo_hyperparameters(
    algo: str, data: Mapping[str, Any], trusted: Collection[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the hyper-parameters in a config.yml of RL Zoo, of whatever age, and what of it SB3 no longer has.

    Args:
        algo: the algorithm's name.
        data: what the file holds.
        trusted: as `equirl.config.validate` takes it.

    Raises:
        UserError: what is left is not valid, in one line.

    >>> read_zoo_hyperparameters(
    ...     "ppo",
    ...     {
    ...         "policy": "MlpPolicy",
    ...         "n_timesteps": 1e6,
    ...         "policy_kwargs": "dict(activation_fn=nn.ReLU, net_arch=[dict(pi=[256], vf=[256])])",
    ...         "create_eval_env": True,
    ...     },
    ... )  # doctest: +NORMALIZE_WHITESPACE
    ({'n_timesteps': 1000000, 'policy': 'MlpPolicy',
      'policy_kwargs': {'activation_fn': 'nn.ReLU', 'net_arch': {'pi': [256], 'vf': [256]}}}, ['create_eval_env'])
    """
    found, dropped = dict(data), []
    _read_normalization(found)
    _read_training(found)
    for place, names in _GONE.items():
        keywords = found if not place else keyword_arguments(found[place]) if place in found else None
        for name in names:
            if keywords and name in keywords:
                del keywords[name]
                dropped.append(name)
        if place and keywords is not None:  # what is no mapping stays as it is, to be refused
            found[place] = keywords
    timeouts = (keyword_arguments(found.get("replay_buffer_kwargs")) or {}).get("handle_timeout_termination", True)
    if found.get("optimize_memory_usage") and timeouts:
        del found["optimize_memory_usage"]  # SB3 could do both once
        dropped.append("optimize_memory_usage")
    _read_layers(found)
    for key in ("env_wrapper", "vec_env_wrapper", "callback"):
        if key in found:
            found[key] = _moved(found[key])
    if found.get("replay_buffer_class") == "HerReplayBuffer":
        found["replay_buffer_class"] = "stable_baselines3.HerReplayBuffer"
    return validate(algo, found, trusted), dropped


def _read_normalization(found: dict[str, Any]) -> None:
    """Join ``normalize_kwargs``, which stood beside ``normalize``, with it."""
    keywords = found.pop("normalize_kwargs", None)
    if keywords and found.get("normalize") is True:
        found["normalize"] = keywords


def _read_training(found: dict[str, Any]) -> None:
    """Write ``n_episodes_rollout`` as ``train_freq``, and no limit of ``clip_range_vf``, once -1, as None."""
    episodes = found.get("n_episodes_rollout")
    if type(episodes) is int and episodes > 0:
        found["train_freq"] = [episodes, "episode"]
    limit = found.get("clip_range_vf")
    if type(limit) in (int, float) and limit < 0:  # type: ignore[operator]
        found["clip_range_vf"] = None


def _read_layers(found: dict[str, Any]) -> None:
    """Take ``[dict(pi=..., vf=...)]`` as the mapping in it; layers before it were shared, as SB3 no longer does."""
    keywords = found.get("policy_kwargs")
    layers = keywords.get("net_arch") if isinstance(keywords, dict) else None
    if not isinstance(layers, list) or not any(isinstance(part, dict) for part in layers):
        return
    if len(layers) > 1:
        raise UserError(
            f"net_arch {layers!r} in policy_kwargs: expected dict(pi=[...], vf=[...]) alone, since SB3 no longer "
            "shares layers between actor and critic"
        )
    found["policy_kwargs"] = {**keywords, "net_arch": layers[0]}  # type: ignore[dict-item]


def _moved(value: Any) -> Any:
    """Return ``env_wrapper`` or a similar key with the paths that its classes have today."""
    if isinstance(value, (list, tuple)):
        return [_moved(entry) for entry in value]
    if isinstance(value, Mapping):
        return {_moved(path): keywords for path, keywords in value.items()}
    if not isinstance(value, str):
        return value
    old = next((old for old in _MOVED if value.startswith(old)), "")
    path = _MOVED.get(old, "") + value.removeprefix(old)
    if path.startswith(_WRAPPERS):  # its modules have other names in each version, what it exports does not
        name = path.rpartition(".")[2]
        path = _WRAPPERS + _RENAMED.get(name, name)
    return path
