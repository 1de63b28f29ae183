"""The configuration of one training run, in RL Zoo's format, validated whole before anything starts.

SB3 is imported inside the functions that need it: it takes seconds, and the command line asks for names before that.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import yaml

from equirl.errors import UserError, unknown
from equirl.hyperparameters import (
    ACTIVATIONS,
    checked_value,
    imported,
    keyword_arguments,
    keywords_of,
    linear_start,
    named_callables,
    parse_value,
)
from equirl.symmetry import registered_symmetries, resolve_symmetry

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.policies import BasePolicy


class Algorithm(NamedTuple):
    """Where an algorithm lives: the dotted path of SB3's class, and the module of its symmetric policies."""

    model: str
    policies: str


ALGORITHMS = {"dqn": Algorithm("stable_baselines3.DQN", "equirl.agents.dqn")}

OUR_KEYS = frozenset({"symmetry", "method"})
ZOO_KEYS = frozenset(
    {"policy", "n_timesteps", "n_envs", "frame_stack", "env_wrapper", "vec_env_wrapper", "callback", "normalize"}
    | {"env_kwargs", "monitor_kwargs"}
)
_REQUIRED = ("policy", "n_timesteps")
# Parameters of SB3's constructors that belong to the run, not to the hyper-parameters.
_OF_THE_RUN = {"policy", "env", "seed", "device", "tensorboard_log", "verbose", "_init_setup_model"}
# Keyword arguments that SB3 (or the key of ours by that name) already fills.
_FILLED = {
    "policy_kwargs": {"observation_space", "action_space", "lr_schedule"} | OUR_KEYS,
    "replay_buffer_kwargs": {"buffer_size", "observation_space", "action_space", "device", "n_envs", "env"}
    | {"optimize_memory_usage"},
    "monitor_kwargs": {"env", "filename"},
    "normalize": {"venv", "training"},
    "env_wrapper": {"env"},
    "vec_env_wrapper": {"venv"},
}


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
    return sorted((set(inspect.signature(algorithm_class(algo)).parameters) - _OF_THE_RUN) | ZOO_KEYS | OUR_KEYS)


def validate(algo: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters as sorted plain data after checking every key, value and dotted path.

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
    checked = {key: checked_value(key, hyperparameters[key]) for key in sorted(hyperparameters)}
    _check_symmetry(checked.get("symmetry", "auto"))
    _check_keywords(algo, checked)
    _check_combinations(checked)
    return checked


def _check_symmetry(value: str | dict[str, Any]) -> None:
    names = ["auto", *registered_symmetries()]
    if isinstance(value, str) and value not in names:
        raise unknown("symmetry", value, names)
    if isinstance(value, dict):
        resolve_symmetry(value)


def _check_keywords(algo: str, hyperparameters: Mapping[str, Any]) -> None:
    """Check keyword arguments against the constructors that take them, and thereby that the classes can be imported."""
    buffer = hyperparameters.get("replay_buffer_class") or "stable_baselines3.common.buffers.ReplayBuffer"
    takers: dict[str, Callable[..., Any]] = {
        "policy_kwargs": policy_class(algo, hyperparameters["policy"]),
        "replay_buffer_kwargs": imported("replay_buffer_class", buffer),
        "monitor_kwargs": imported("monitor_kwargs", "stable_baselines3.common.monitor.Monitor"),
        "normalize": imported("normalize", "stable_baselines3.common.vec_env.VecNormalize"),
    }
    given = [(key, taker, keyword_arguments(hyperparameters.get(key)) or {}) for key, taker in takers.items()]
    for key in ("env_wrapper", "vec_env_wrapper", "callback"):
        given += [(key, *named) for named in named_callables(key, hyperparameters.get(key))]
    for key, taker, keywords in given:
        valid = sorted(keywords_of(taker) - _FILLED.get(key, set()))
        for keyword in keywords:
            if keyword not in valid:
                raise unknown(f"keyword of {taker.__name__} in {key}:", keyword, valid)


def _check_combinations(hyperparameters: Mapping[str, Any]) -> None:
    """Refuse the pairs of values that SB3 refuses only once it runs."""
    freq = hyperparameters.get("train_freq")
    if hyperparameters.get("n_envs", 1) > 1 and isinstance(freq, list) and freq[1] == "episode":
        raise UserError(f"train_freq {freq!r}: expected steps, not episodes, with more than one environment (n_envs)")
    buffer = keyword_arguments(hyperparameters.get("replay_buffer_kwargs")) or {}
    if hyperparameters.get("optimize_memory_usage") and buffer.get("handle_timeout_termination", True):
        raise UserError(
            "optimize_memory_usage True: expected replay_buffer_kwargs with handle_timeout_termination False beside it"
        )


def _algorithm(algo: str) -> Algorithm:
    if algo not in ALGORITHMS:
        raise unknown("algorithm", algo, ALGORITHMS)
    return ALGORITHMS[algo]


def algorithm_class(algo: str) -> "type[BaseAlgorithm]":
    """Return SB3's class of an algorithm.

    >>> algorithm_class("dqn").__name__
    'DQN'
    """
    return cast("type[BaseAlgorithm]", imported("algorithm", _algorithm(algo).model))


def policy_class(algo: str, policy: str) -> "type[BasePolicy]":
    """Return the symmetric policy by SB3's name for it, or the policy that a dotted path names.

    Raises:
        UserError: neither one of SB3's names nor a policy's path.

    >>> policy_class("dqn", "MlpPolicy").__module__
    'equirl.agents.dqn'
    """
    from stable_baselines3.common.policies import BasePolicy

    names = algorithm_class(algo).policy_aliases
    if policy not in names and "." not in policy:
        raise unknown("policy", policy, names)
    found = imported("policy", f"{ALGORITHMS[algo].policies}.{policy}" if policy in names else policy)
    if not (isinstance(found, type) and issubclass(found, BasePolicy)):
        raise UserError(f"policy {policy!r}: expected a subclass of SB3's BasePolicy")
    return found


def algorithm_kwargs(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of SB3's constructor: schedules, classes and tuples made from plain data.

    The keys of ours and of RL Zoo are left out; ``policy_kwargs`` is always a dict of its own, to be added to.

    >>> algorithm_kwargs({"policy": "MlpPolicy", "learning_rate": "lin_1e-3", "n_envs": 2})
    {'learning_rate': LinearSchedule(start=0.001, end=0.0, end_fraction=1.0), 'policy_kwargs': {}}
    """
    from stable_baselines3.common.utils import LinearSchedule

    kwargs = {key: value for key, value in hyperparameters.items() if key not in ZOO_KEYS | OUR_KEYS}
    start = linear_start(kwargs.get("learning_rate"))
    if start is not None:
        kwargs["learning_rate"] = LinearSchedule(start, 0.0, 1.0)
    if isinstance(kwargs.get("train_freq"), list):
        kwargs["train_freq"] = tuple(kwargs["train_freq"])
    if kwargs.get("replay_buffer_class"):
        kwargs["replay_buffer_class"] = imported("replay_buffer_class", kwargs["replay_buffer_class"])
    if "replay_buffer_kwargs" in kwargs:
        kwargs["replay_buffer_kwargs"] = keyword_arguments(kwargs["replay_buffer_kwargs"])
    kwargs["policy_kwargs"] = _with_classes(keyword_arguments(kwargs.get("policy_kwargs")))
    return kwargs


def _with_classes(value: Any) -> Any:
    """Replace the names of activations, at any depth, by torch's classes."""
    if isinstance(value, dict):
        return {key: _with_classes(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_classes(part) for part in value]
    if isinstance(value, str) and value in ACTIVATIONS:
        return getattr(import_module("torch.nn"), value.removeprefix("nn."))
    return value
