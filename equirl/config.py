"""The configuration of one training run, in RL Zoo's format, validated whole before anything starts.

SB3 is imported inside the functions that need it: it takes seconds, and the command line asks for names before that.
"""

import inspect
import os
import re
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import yaml

from equirl.errors import UserError, unknown
from equirl.hyperparameters import (
    ACTIVATIONS,
    CLASS_NAMES,
    imported,
    keyword_arguments,
    linear_start,
    parse_value,
    policy_part,
)
from equirl.values import check_combinations, check_keywords, check_policy_kwargs, check_symmetry, checked_value

if TYPE_CHECKING:
    from gymnasium import spaces
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.noise import ActionNoise
    from stable_baselines3.common.policies import BasePolicy


class Algorithm(NamedTuple):
    """Where an algorithm lives: the dotted path of SB3's class, or ours, and the module of its symmetric policies."""

    model: str
    policies: str


ALGORITHMS = {
    "dqn": Algorithm("equirl.agents.dqn.DQN", "equirl.agents.dqn"),
    "qrdqn": Algorithm("sb3_contrib.QRDQN", "equirl.agents.qrdqn"),
    "ppo": Algorithm("stable_baselines3.PPO", "equirl.agents.actor_critic"),
    "a2c": Algorithm("stable_baselines3.A2C", "equirl.agents.actor_critic"),
    "sac": Algorithm("stable_baselines3.SAC", "equirl.agents.sac"),
    "td3": Algorithm("stable_baselines3.TD3", "equirl.agents.td3"),
}

OUR_KEYS = frozenset({"symmetry", "method"})
ZOO_KEYS = frozenset(
    {"policy", "n_timesteps", "n_envs", "frame_stack", "env_wrapper", "vec_env_wrapper", "callback", "normalize"}
    | {"env_kwargs", "monitor_kwargs"}
)
NOISE_KEYS = frozenset({"noise_type", "noise_std"})
"""RL Zoo's keys in place of the object that SB3 takes as ``action_noise``."""
_REQUIRED = ("policy", "n_timesteps")
# Parameters of SB3's constructors that belong to the run, not to the hyper-parameters.
_OF_THE_RUN = {"policy", "env", "seed", "device", "tensorboard_log", "verbose", "_init_setup_model"}


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads YAML 1.2's floats and the one Python tag that RL Zoo writes."""


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any]:
    try:
        return dict(*loader.construct_sequence(node, deep=True))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise yaml.constructor.ConstructorError(None, None, "expected a list of pairs", node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
# YAML 1.1 takes 1e-3 and 1.0e3 for strings.
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return the data of a YAML file, also of RL Zoo's config.yml and args.yml; never builds other objects.

    Raises:
        UserError: the file cannot be read, or is not YAML of plain data; names the file and the line.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
    ...     _ = file.write("learning_rate: 1e-3")
    ...     file.flush()
    ...     read_yaml(file.name)
    {'learning_rate': 0.001}
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: expected YAML of plain data: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(f"{path}, line {line}: expected YAML of plain data: {error.reason}") from None
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        # What PyYAML's constructors let through on values such as "!!int x", and bytes that are not UTF-8.
        raise UserError(f"{path}: expected YAML of plain data: {' '.join(str(error).split())}") from None


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """Return the hyper-parameters given as ``key:value`` texts, as RL Zoo's command line has them.

    Raises:
        UserError: an item is not ``key:value``, or its value is not a literal.

    >>> parse_overrides(["learning_rate:0.001", "policy_kwargs:dict(net_arch=[64, 64])"])
    {'learning_rate': 0.001, 'policy_kwargs': {'net_arch': [64, 64]}}
    """
    overrides = {}
    for item in items:
        key, colon, value = item.partition(":")
        if not (key.strip() and colon):
            raise UserError(f"hyper-parameter {item!r}: expected key:value, for instance learning_rate:0.001")
        overrides[key.strip()] = parse_value(value)
    return overrides


def load_hyperparameters(
    algo: str, env_id: str, *, atari: bool, config_file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the validated hyper-parameters of one run as plain data, the contents of its config.yml.

    The entry is that of the environment's id, else ``atari`` for an Atari game, else ``default``, of the given file or
    of the one shipped for the algorithm; the overrides replace its values.

    Raises:
        UserError: unknown algorithm or key, a wrong value, or no entry for the environment.

    >>> load_hyperparameters("dqn", "CartPole-v1", atari=False, overrides={"gamma": 0.9})["gamma"]
    0.9
    """
    _algorithm(algo)
    if config_file is None:
        with as_file(files("equirl.configs") / f"{algo}.yml") as path:
            source, entries = path, read_yaml(path)
    else:
        source, entries = Path(config_file), read_yaml(config_file)
    if not isinstance(entries, dict):
        raise UserError(f"{source}: expected a mapping from environment ids to hyper-parameters")
    candidates = [env_id, *(["atari"] if atari else []), "default"]
    name = next((name for name in candidates if name in entries), None)
    if name is None:
        raise unknown(f"environment in {source}:", env_id, entries)
    if not isinstance(entries[name], dict):
        raise UserError(f"{source}: {name} {entries[name]!r}: expected a mapping of hyper-parameters")
    return validate(algo, {**entries[name], **(overrides or {})})


def valid_keys(algo: str) -> list[str]:
    """Return the names of an algorithm's hyper-parameters: SB3's, RL Zoo's and ours.

    >>> "gamma" in valid_keys("dqn"), "method" in valid_keys("dqn"), "clip_range" in valid_keys("dqn")
    (True, True, False)
    """
    taken = set(inspect.signature(algorithm_class(algo)).parameters) - _OF_THE_RUN
    return sorted(taken | ZOO_KEYS | OUR_KEYS | (NOISE_KEYS if "action_noise" in taken else set()))


def validate(algo: str, hyperparameters: Mapping[str, Any], trusted: Collection[str] | None = None) -> dict[str, Any]:
    """Return the hyper-parameters as sorted plain data after checking every key, value and dotted path.

    Args:
        algo: a name from `ALGORITHMS`.
        hyperparameters: values by key.
        trusted: None for a user's own file. For a file that somebody else wrote, the packages beside those that equirl
            stands on from which its dotted paths may be imported, none of them with a file to write.

    Raises:
        UserError: at the first mistake, in one line.

    >>> validate("dqn", {"policy": "MlpPolicy", "n_timesteps": 1e3, "gama": 0.9})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    equirl.errors.UserError: unknown hyper-parameter 'gama': expected one of ...; did you mean 'gamma'?
    """
    valid = valid_keys(algo)
    for key in hyperparameters:
        if key not in valid:
            raise unknown("hyper-parameter", key, valid)
    for key in _REQUIRED:
        if key not in hyperparameters:
            raise UserError(f"hyper-parameter {key!r} is missing: expected {key}, for instance -P {key}:...")
    checked = {key: checked_value(key, hyperparameters[key], algo) for key in sorted(hyperparameters)}
    check_symmetry(checked.get("symmetry", "auto"))
    check_keywords(policy_class(algo, checked["policy"], trusted), checked, trusted)
    check_policy_kwargs(checked, trusted)
    check_combinations(checked)
    return checked


def _algorithm(algo: str) -> Algorithm:
    if algo not in ALGORITHMS:
        raise unknown("algorithm", algo, ALGORITHMS)
    return ALGORITHMS[algo]


def algorithm_class(algo: str) -> "type[BaseAlgorithm]":
    """Return the class of an algorithm: SB3's, but for DQN, whose gradient steps we take faster.

    >>> algorithm_class("dqn").__name__
    'DQN'
    """
    return cast("type[BaseAlgorithm]", imported("algorithm", _algorithm(algo).model))


def policy_class(algo: str, policy: str, trusted: Collection[str] | None = None) -> "type[BasePolicy]":
    """Return the symmetric policy by SB3's name for it, or the policy that a dotted path names.

    Raises:
        UserError: neither one of SB3's names nor the path of a policy of the algorithm.

    >>> policy_class("dqn", "MlpPolicy").__module__
    'equirl.agents.dqn'
    """
    names = algorithm_class(algo).policy_aliases
    if policy not in names and "." not in policy:
        raise unknown("policy", policy, names)
    path = f"{ALGORITHMS[algo].policies}.{policy}" if policy in names else policy
    found = cast("type[BasePolicy]", imported("policy", path, trusted))
    base = names["MlpPolicy"]
    if not issubclass(found, base):
        raise UserError(f"policy {policy!r}: expected a policy of {algo}, a subclass of {base.__name__}")
    return found


def algorithm_kwargs(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of SB3's constructor: schedules, classes and tuples made from plain data.

    The keys of ours and of RL Zoo are left out, those of `action_noise` too; ``policy_kwargs`` is always a dict of its
    own, to be added to.

    >>> algorithm_kwargs({"policy": "MlpPolicy", "learning_rate": "lin_1e-3", "n_envs": 2})
    {'learning_rate': LinearSchedule(start=0.001, end=0.0, end_fraction=1.0), 'policy_kwargs': {}}
    """
    from stable_baselines3.common.utils import LinearSchedule

    kwargs = {key: value for key, value in hyperparameters.items() if key not in ZOO_KEYS | OUR_KEYS | NOISE_KEYS}
    for key in ("learning_rate", "clip_range", "clip_range_vf"):
        start = linear_start(kwargs.get(key))
        if start is not None:
            kwargs[key] = LinearSchedule(start, 0.0, 1.0)
    if isinstance(kwargs.get("train_freq"), list):
        kwargs["train_freq"] = tuple(kwargs["train_freq"])
    for key in ("replay_buffer_class", "rollout_buffer_class"):
        if kwargs.get(key):
            kwargs[key] = imported(key, kwargs[key])
    for key in ("replay_buffer_kwargs", "rollout_buffer_kwargs"):
        if key in kwargs:
            kwargs[key] = keyword_arguments(kwargs[key])
    policy_kwargs = _with_classes(keyword_arguments(kwargs.get("policy_kwargs")))
    for key in ("features_extractor_class", "optimizer_class"):
        if key in policy_kwargs:
            policy_kwargs[key] = policy_part(key, policy_kwargs[key])
    return {**kwargs, "policy_kwargs": policy_kwargs}


def action_noise(hyperparameters: Mapping[str, Any], action_space: "spaces.Space[Any]") -> "ActionNoise | None":
    """Return the noise that ``noise_type`` and ``noise_std`` ask for, of one entry an action, or None.

    All entries have one standard deviation and the mean 0, so that the noise moves with actions of any sign and order.

    Raises:
        UserError: the actions are no Box.

    >>> from gymnasium.spaces import Box
    >>> action_noise({"noise_type": "normal", "noise_std": 0.1}, Box(-1, 1, (2,)))
    NormalActionNoise(mu=[0. 0.], sigma=[0.1 0.1])
    """
    from gymnasium.spaces import Box
    from stable_baselines3.common import noise

    kind = hyperparameters.get("noise_type")
    if kind is None:
        return None
    if not isinstance(action_space, Box):
        raise UserError(f"noise_type {kind!r} on {action_space}: expected actions in a Box")
    mean, sigma = np.zeros(action_space.shape), np.full(action_space.shape, float(hyperparameters["noise_std"]))
    if kind == "normal":
        return noise.NormalActionNoise(mean, sigma)
    return noise.OrnsteinUhlenbeckActionNoise(mean, sigma)


def _with_classes(value: Any) -> Any:
    """Replace the names of activations, at any depth, by torch's classes."""
    if isinstance(value, dict):
        return {key: _with_classes(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_classes(part) for part in value]
    if isinstance(value, str) and CLASS_NAMES.get(value) in ACTIVATIONS:
        return getattr(import_module("torch.nn"), CLASS_NAMES[value].removeprefix("nn."))
    return value
