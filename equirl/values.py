"""What each hyper-parameter may be: one test a key with the sentence that follows where it fails, then all together."""

import json
import math
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from equirl.errors import UserError, unknown
from equirl.hyperparameters import (
    ACTIVATIONS,
    CLASS_NAMES,
    imported,
    is_path,
    keyword_arguments,
    keywords_of,
    linear_start,
    named_callables,
    policy_part,
)
from equirl.methods import METHODS, NATIVE, unknown_method
from equirl.symmetry import registered_symmetries, resolve_symmetry

Check = tuple[Callable[[Any], bool], str]
"""A test of a value, and what was expected when it fails."""

# Keyword arguments that SB3 (or the key of ours by that name) already fills.
_FILLED = {
    "policy_kwargs": {"observation_space", "action_space", "lr_schedule", "use_sde", "symmetry", "method"},
    "replay_buffer_kwargs": {"buffer_size", "observation_space", "action_space", "device", "n_envs", "env"}
    | {"optimize_memory_usage"},
    "rollout_buffer_kwargs": {"buffer_size", "observation_space", "action_space", "device", "n_envs"}
    | {"gae_lambda", "gamma"},
    "monitor_kwargs": {"env", "filename"},
    "normalize": {"venv", "training"},
    "env_wrapper": {"env"},
    "vec_env_wrapper": {"venv"},
}
# Keyword arguments of SB3's and Gymnasium's wrappers and callbacks that name a file or folder to be written.
_WRITTEN = {"filename", "folder", "video_folder", "save_path", "log_path", "best_model_save_path"}
VALUE_ALGORITHMS = ("dqn", "qrdqn")
OF_VALUES = (NATIVE,)
"""The methods that only their policies have."""
NOISES = ("normal", "ornstein-uhlenbeck")


def _finite(value: Any) -> bool:
    """Whether a value is a number that torch can compute with; YAML's integers have no end."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


def _integer(low: int) -> Check:
    return lambda value: type(value) is int and low <= value < 2**63, f"an integer of at least {low}"


def _optional(check: Check) -> Check:
    test, expected = check
    return lambda value: value is None or test(value), f"{expected}, or None"


def _is_named(value: Any) -> bool:
    """Whether the value is one entry of RL Zoo's lists: ``package.Name`` or ``{package.Name: {keyword: value}}``."""
    if isinstance(value, Mapping) and len(value) == 1:
        [(value, keywords)] = value.items()
        if keyword_arguments(keywords) is None:
            return False
    return is_path(value) and "." in value


def _is_train_freq(value: Any) -> bool:
    count, unit = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, "step")
    return type(count) is int and count >= 1 and unit in ("step", "episode")


def _is_entropy_coefficient(value: Any) -> bool:
    if not isinstance(value, str):
        return _NOT_NEGATIVE[0](value)
    kind, _, start = value.partition("_")
    try:
        return kind == "auto" and (value == "auto" or _positive(float(start)))
    except ValueError:
        return False


def _is_net_arch(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else [value]
    known = not isinstance(value, Mapping) or {"pi", "vf", "qf"}.issuperset(value)
    return known and all(isinstance(part, list) and all(type(n) is int and n > 0 for n in part) for part in parts)


_FRACTION: Check = (lambda v: type(v) in (int, float) and 0 <= v <= 1, "a number from 0 to 1")
_NUMBER: Check = (_finite, "a number")
_NOT_NEGATIVE: Check = (lambda v: _finite(v) and v >= 0, "a number of at least 0")
_POSITIVE: Check = (_positive, "a number above 0")
_SCHEDULE: Check = (lambda v: _positive(v) or linear_start(v) is not None, "a number above 0, or lin_<number>")
_BOOLEAN: Check = (lambda v: isinstance(v, bool), "True or False")
_KEYWORDS: Check = (lambda v: keyword_arguments(v) is not None, "keyword arguments: a mapping or 'dict(...)'")
_CLASS: Check = (lambda v: isinstance(v, str) and _is_named(v), "a class's dotted path")
_NAMED: Check = (
    lambda v: v is None or all(map(_is_named, v if isinstance(v, (list, tuple)) else [v])),
    "a dotted path such as package.Name, a mapping {package.Name: {keyword: value}}, or a list of these",
)
_CLIP: Check = (lambda v: _positive(v) or v == math.inf, "a number above 0")  # infinity clips nothing

CHECKS: dict[str, Check] = {
    # RL Zoo's own
    "policy": (is_path, "a policy's name such as MlpPolicy, or its dotted path"),
    "n_timesteps": _integer(1),
    "n_envs": _integer(1),
    "frame_stack": _integer(1),
    "env_wrapper": _NAMED,
    "vec_env_wrapper": _NAMED,
    "callback": _NAMED,
    "normalize": (lambda v: isinstance(v, bool) or (v is not None and _KEYWORDS[0](v)), "True, False or dict(...)"),
    "env_kwargs": (lambda v: v is None or isinstance(v, Mapping), "a mapping of keyword arguments"),
    "monitor_kwargs": _KEYWORDS,
    "noise_type": (lambda v: v is None or v in NOISES, f"one of {', '.join(NOISES)}"),
    "noise_std": _optional(_NOT_NEGATIVE),
    # ours
    "symmetry": (lambda v: isinstance(v, (str, Mapping)) and bool(v), "auto, none, a symmetry's name or its data"),
    "method": (lambda v: isinstance(v, str), f"one of {', '.join([*METHODS, *OF_VALUES])}"),
    # SB3's constructors, all algorithms
    "learning_rate": _SCHEDULE,
    "gamma": _FRACTION,
    "n_steps": _integer(1),
    "batch_size": _integer(1),
    "max_grad_norm": _CLIP,
    "stats_window_size": _integer(1),
    "policy_kwargs": _KEYWORDS,
    # off-policy
    "buffer_size": _integer(1),
    "learning_starts": _integer(0),
    "tau": (lambda v: _positive(v) and v <= 1, "a number above 0 and at most 1"),
    "train_freq": (_is_train_freq, "an integer of at least 1, or [integer, 'step' or 'episode']"),
    "gradient_steps": (lambda v: type(v) is int and v >= -1 and v != 0, "an integer of at least 1, or -1"),
    "replay_buffer_class": _optional(_CLASS),
    "replay_buffer_kwargs": _KEYWORDS,
    "optimize_memory_usage": _BOOLEAN,
    "target_update_interval": _integer(1),
    "action_noise": (lambda v: v is None, "None; write noise_type and noise_std in its place"),
    # DQN, QR-DQN
    "exploration_fraction": _FRACTION,
    "exploration_initial_eps": _FRACTION,
    "exploration_final_eps": _FRACTION,
    "qrdqn.max_grad_norm": _optional(_CLIP),
    # PPO, A2C
    "n_epochs": _integer(1),
    "gae_lambda": _FRACTION,
    "clip_range": _SCHEDULE,
    "clip_range_vf": _optional(_SCHEDULE),
    "normalize_advantage": _BOOLEAN,
    "ent_coef": _NOT_NEGATIVE,
    "vf_coef": _NOT_NEGATIVE,
    "target_kl": _optional(_POSITIVE),
    "rms_prop_eps": _POSITIVE,
    "use_rms_prop": _BOOLEAN,
    "rollout_buffer_class": _optional(_CLASS),
    "rollout_buffer_kwargs": _KEYWORDS,
    "use_sde": (lambda v: v is False, "False, since its noise is drawn in the features, which the group does not move"),
    "sde_sample_freq": (lambda v: type(v) is int and v >= -1 and v != 0, "an integer of at least 1, or -1"),
    # SAC
    "sac.ent_coef": (_is_entropy_coefficient, "a number of at least 0, auto, or auto_<number above 0>"),
    "target_entropy": (lambda v: v == "auto" or _NUMBER[0](v), "a number, or auto"),
    "use_sde_at_warmup": _BOOLEAN,
    # TD3
    "policy_delay": _integer(1),
    "target_policy_noise": _NOT_NEGATIVE,
    "target_noise_clip": _NOT_NEGATIVE,
}
"""The test of each key, by ``algorithm.key`` where an algorithm has its own."""

POLICY_CHECKS: dict[str, Check] = {
    "net_arch": _optional((_is_net_arch, "a list of layers' sizes, or a mapping of pi and vf (or qf) to such lists")),
    "n_quantiles": _integer(1),
    "n_critics": _integer(1),
    "share_features_extractor": _BOOLEAN,
    "normalize_images": _BOOLEAN,
    "ortho_init": _BOOLEAN,
    "log_std_init": _NUMBER,
}
"""The test of those keyword arguments of policies that every configuration may hold."""


def checked_value(key: str, value: Any, algo: str = "") -> Any:
    """Return the value of a known key as plain JSON data; a whole float becomes an integer where one is expected.

    Raises:
        UserError: the value has the wrong type or range.

    >>> checked_value("buffer_size", 1e5)
    100000
    >>> checked_value("ent_coef", "auto_0.1", "sac")
    'auto_0.1'
    >>> checked_value("gamma", 1.5)
    Traceback (most recent call last):
    ...
    equirl.errors.UserError: gamma 1.5: expected a number from 0 to 1
    """
    test, expected = CHECKS.get(f"{algo}.{key}") or CHECKS[key]
    # YAML and the command line both write 1e6 for a count.
    if isinstance(value, float) and value.is_integer() and not test(value):
        value = int(value) if test(int(value)) else value
    if not test(value):
        raise UserError(f"{key} {value!r}: expected {expected}")
    if key == "method" and value not in (methods := methods_of(algo)):
        raise unknown_method(value, methods)
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        raise UserError(f"{key} {value!r}: expected plain data (numbers, strings, lists and mappings)") from None


def methods_of(algo: str) -> list[str]:
    """Return the methods of an algorithm's policies.

    >>> methods_of("dqn")[-2:], methods_of("ppo")[-1]
    (['soft', 'native'], 'soft')
    """
    return [*METHODS, *(OF_VALUES if algo in VALUE_ALGORITHMS else [])]


def check_symmetry(value: str | dict[str, Any]) -> None:
    """Raise a `UserError` for a name that is not registered, or data that is no symmetry."""
    names = ["auto", *registered_symmetries()]
    if isinstance(value, str) and value not in names:
        raise unknown("symmetry", value, names)
    if isinstance(value, dict):
        resolve_symmetry(value)


def check_keywords(
    policy: Callable[..., Any], hyperparameters: Mapping[str, Any], trusted: Collection[str] | None
) -> None:
    """Check keyword arguments against the constructors that take them, and thereby that the classes can be imported."""
    takers: dict[str, Callable[..., Any]] = {
        "policy_kwargs": policy,
        "monitor_kwargs": imported("monitor_kwargs", "stable_baselines3.common.monitor.Monitor"),
        "normalize": imported("normalize", "stable_baselines3.common.vec_env.VecNormalize"),
    }
    for kind, default in (("replay", "ReplayBuffer"), ("rollout", "RolloutBuffer")):
        key = f"{kind}_buffer_class"
        path = hyperparameters.get(key) or f"stable_baselines3.common.buffers.{default}"
        takers[f"{kind}_buffer_kwargs"] = imported(key, path, trusted)
    given = [(key, taker, keyword_arguments(hyperparameters.get(key)) or {}) for key, taker in takers.items()]
    for key in ("env_wrapper", "vec_env_wrapper", "callback"):
        given += [(key, *named) for named in named_callables(key, hyperparameters.get(key), trusted)]
    for key, taker, keywords in given:
        valid = sorted(keywords_of(taker) - _FILLED.get(key, set()))
        for keyword, value in keywords.items():
            if keyword not in valid:
                raise unknown(f"keyword of {taker.__name__} in {key}:", keyword, valid or ["none"])
            if trusted is not None and keyword in _WRITTEN and value is not None:
                raise UserError(
                    f"{key}: {taker.__name__} would write to {value!r}: expected no {keyword} in somebody else's file; "
                    "--trust the folder, or remove it there"
                )


def check_policy_kwargs(hyperparameters: Mapping[str, Any], trusted: Collection[str] | None) -> None:
    """Check the values in ``policy_kwargs`` that every configuration may hold, and import the classes they name."""
    for key, value in (keyword_arguments(hyperparameters.get("policy_kwargs")) or {}).items():
        test, expected = POLICY_CHECKS.get(key, (lambda value: True, ""))
        if not test(value):
            raise UserError(f"{key} {value!r} in policy_kwargs: expected {expected}")
        if key == "activation_fn" and CLASS_NAMES.get(str(value)) not in ACTIVATIONS:
            raise unknown("activation_fn", value, ACTIVATIONS)
        if key in ("features_extractor_class", "optimizer_class"):
            policy_part(key, value, trusted)


def check_combinations(hyperparameters: Mapping[str, Any]) -> None:
    """Refuse the pairs of values that SB3 refuses only once it runs."""
    freq = hyperparameters.get("train_freq")
    if hyperparameters.get("n_envs", 1) > 1 and isinstance(freq, list) and freq[1] == "episode":
        raise UserError(f"train_freq {freq!r}: expected steps, not episodes, with more than one environment (n_envs)")
    buffer = keyword_arguments(hyperparameters.get("replay_buffer_kwargs")) or {}
    if hyperparameters.get("optimize_memory_usage") and buffer.get("handle_timeout_termination", True):
        raise UserError(
            "optimize_memory_usage True: expected replay_buffer_kwargs with handle_timeout_termination False beside it"
        )
    kind, size = (hyperparameters.get(key) for key in ("noise_type", "noise_std"))
    if (kind is None) != (size is None):
        raise UserError(f"noise_type {kind!r} and noise_std {size!r}: expected both or neither")
