"""What each hyper-parameter may be, what it names, and a parser for values typed on a command line.

Nothing here evaluates what a user wrote; dotted paths are imported, as RL Zoo does.
"""

import ast
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

from equirl.errors import UserError, unknown
from equirl.symmetrizers import METHODS

ACTIVATIONS = ("nn.ReLU", "nn.Tanh", "nn.ELU", "nn.LeakyReLU", "nn.SiLU", "nn.GELU")

Check = tuple[Callable[[Any], bool], str]
"""A test of a value, and what was expected when it fails."""


def parse_value(text: str) -> Any:
    """Return the plain value that a text such as ``0.001`` or ``dict(net_arch=[64, 64])`` stands for.

    Numbers, strings, lists, dicts, None, True, False and ``dict(...)`` are read as Python reads them; tuples become
    lists, activation classes such as ``nn.ReLU`` stay names, and a bare word is a string. Nothing is ever executed.

    Raises:
        UserError: the text is an expression that is not a literal, such as a call of anything but ``dict``.

    >>> parse_value("1e-3"), parse_value("lin_1e-3"), parse_value("(2, 'episode')")
    (0.001, 'lin_1e-3', [2, 'episode'])
    >>> parse_value("dict(net_arch=[64, 64], activation_fn=nn.ReLU)")
    {'net_arch': [64, 64], 'activation_fn': 'nn.ReLU'}
    """
    try:
        expression = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text
    try:
        return _literal(expression)
    except _NotLiteralError as error:
        # Names, dotted paths and schedules such as lin_1e-3 happen to be Python expressions too.
        if not set(text) & set("()[]{}'\""):
            return text
        part = ast.unparse(error.args[0])
        if isinstance(error.args[0], (ast.Name, ast.Attribute)):
            raise unknown("name", part, ACTIVATIONS) from None
        raise UserError(f"value {text!r}: expected a literal or dict(...), not {part!r}") from None


class _NotLiteralError(Exception):
    """Carries the first part of an expression that is not a literal."""


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(node.op, ast.USub) else number
        case ast.List() | ast.Tuple():
            return [_literal(element) for element in node.elts]
        case ast.Dict(keys=keys) if all(isinstance(key, ast.Constant) for key in keys):
            return {_literal(key): _literal(value) for key, value in zip(keys, node.values, strict=True) if key}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(word.arg for word in keywords):
            return {word.arg: _literal(word.value) for word in keywords}
        case ast.Attribute() if ast.unparse(node) in ACTIVATIONS:
            return ast.unparse(node)
        case _:
            raise _NotLiteralError(node)


def keyword_arguments(value: Any) -> dict[str, Any] | None:
    """Return keyword arguments given as a mapping, a ``"dict(...)"`` string or None; None where it is none of these.

    >>> keyword_arguments("dict(net_arch=[64])"), keyword_arguments(None), keyword_arguments(3)
    ({'net_arch': [64]}, {}, None)
    """
    parsed = {} if value is None else parse_value(value) if isinstance(value, str) else value
    return dict(parsed) if isinstance(parsed, Mapping) and all(isinstance(key, str) for key in parsed) else None


def linear_start(value: Any) -> float | None:
    """Return x of a schedule ``"lin_x"`` that falls linearly from x to 0; None where the value is not one.

    >>> linear_start("lin_1e-3"), linear_start("1e-3")
    (0.001, None)
    """
    found = re.fullmatch(r"lin_(\d+\.?\d*(?:e[-+]?\d+)?)", value) if isinstance(value, str) else None
    return float(found[1]) if found and _positive(float(found[1])) else None


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _integer(low: int) -> Check:
    return lambda value: type(value) is int and value >= low, f"an integer of at least {low}"


def _is_named(value: Any) -> bool:
    """Whether the value is one entry of RL Zoo's lists: ``package.Name`` or ``{package.Name: {keyword: value}}``."""
    if isinstance(value, Mapping) and len(value) == 1:
        [(value, keywords)] = value.items()
        if keyword_arguments(keywords) is None:
            return False
    return _is_path(value) and "." in value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))


def _is_train_freq(value: Any) -> bool:
    count, unit = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, "step")
    return type(count) is int and count >= 1 and unit in ("step", "episode")


_FRACTION: Check = (lambda v: type(v) in (int, float) and 0 <= v <= 1, "a number from 0 to 1")
_BOOLEAN: Check = (lambda v: isinstance(v, bool), "True or False")
_KEYWORDS: Check = (lambda v: keyword_arguments(v) is not None, "keyword arguments: a mapping or 'dict(...)'")
_NAMED: Check = (
    lambda v: v is None or all(map(_is_named, v if isinstance(v, (list, tuple)) else [v])),
    "a dotted path such as package.Name, a mapping {package.Name: {keyword: value}}, or a list of these",
)

CHECKS: dict[str, Check] = {
    # RL Zoo's own
    "policy": (_is_path, "a policy's name such as MlpPolicy, or its dotted path"),
    "n_timesteps": _integer(1),
    "n_envs": _integer(1),
    "frame_stack": _integer(1),
    "env_wrapper": _NAMED,
    "vec_env_wrapper": _NAMED,
    "callback": _NAMED,
    "normalize": (lambda v: isinstance(v, bool) or (v is not None and _KEYWORDS[0](v)), "True, False or dict(...)"),
    "env_kwargs": (lambda v: v is None or isinstance(v, Mapping), "a mapping of keyword arguments"),
    "monitor_kwargs": _KEYWORDS,
    # ours
    "symmetry": (lambda v: isinstance(v, (str, Mapping)) and bool(v), "auto, none, a symmetry's name or its data"),
    "method": (lambda v: isinstance(v, str), f"one of {', '.join(METHODS)}"),
    # SB3's constructors
    "learning_rate": (lambda v: _positive(v) or linear_start(v) is not None, "a number above 0, or lin_<number>"),
    "buffer_size": _integer(1),
    "learning_starts": _integer(0),
    "batch_size": _integer(1),
    "tau": (lambda v: _positive(v) and v <= 1, "a number above 0 and at most 1"),
    "gamma": _FRACTION,
    "train_freq": (_is_train_freq, "an integer of at least 1, or [integer, 'step' or 'episode']"),
    "gradient_steps": (lambda v: type(v) is int and v >= -1 and v != 0, "an integer of at least 1, or -1"),
    "replay_buffer_class": (lambda v: v is None or (isinstance(v, str) and _is_named(v)), "a class's dotted path"),
    "replay_buffer_kwargs": _KEYWORDS,
    "optimize_memory_usage": _BOOLEAN,
    "n_steps": _integer(1),
    "target_update_interval": _integer(1),
    "exploration_fraction": _FRACTION,
    "exploration_initial_eps": _FRACTION,
    "exploration_final_eps": _FRACTION,
    "max_grad_norm": (lambda v: type(v) in (int, float) and v > 0, "a number above 0"),
    "stats_window_size": _integer(1),
    "policy_kwargs": _KEYWORDS,
}


def checked_value(key: str, value: Any) -> Any:
    """Return the value of a known key as plain JSON data; a whole float becomes an integer where one is expected.

    Raises:
        UserError: the value has the wrong type or range.

    >>> checked_value("buffer_size", 1e5)
    100000
    >>> checked_value("gamma", 1.5)
    Traceback (most recent call last):
    ...
    equirl.errors.UserError: gamma 1.5: expected a number from 0 to 1
    """
    test, expected = CHECKS[key]
    # YAML and the command line both write 1e6 for a count.
    if isinstance(value, float) and value.is_integer() and not test(value):
        value = int(value) if test(int(value)) else value
    if not test(value):
        raise UserError(f"{key} {value!r}: expected {expected}")
    if key == "method" and value not in METHODS:
        raise unknown("method", value, METHODS)
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        raise UserError(f"{key} {value!r}: expected plain data (numbers, strings, lists and mappings)") from None


# What a dotted path may name, by key: a run folder that somebody hands over must not get to call just anything.
_BASES = {
    "env_wrapper": "gymnasium.Wrapper",
    "vec_env_wrapper": "stable_baselines3.common.vec_env.VecEnvWrapper",
    "callback": "stable_baselines3.common.callbacks.BaseCallback",
    "replay_buffer_class": "stable_baselines3.common.buffers.ReplayBuffer",
}


def imported(key: str, path: str) -> Callable[..., Any]:
    """Return the class or function that the dotted path given for a key names.

    Raises:
        UserError: there is none, or it is no subclass of what the key stands for.

    >>> imported("env_wrapper", "gymnasium.wrappers.TimeLimit").__name__
    'TimeLimit'
    """
    module, _, name = path.rpartition(".")
    base = _BASES.get(key)
    try:
        found = getattr(import_module(module), name)
    except ImportError as error:
        reason = " ".join(str(error).split())
    except AttributeError:
        reason = f"module {module} has no {name}"
    else:
        if callable(found) and (base is None or _is_subclass(found, base)):
            return cast("Callable[..., Any]", found)
        reason = "it is none"
    expected = f"a subclass of {base}" if base else "a class or function"
    raise UserError(f"{key} {path!r}: expected the dotted path of {expected}: {reason}")


def _is_subclass(found: Any, base: str) -> bool:
    module, _, name = base.rpartition(".")
    return isinstance(found, type) and issubclass(found, getattr(import_module(module), name))


def named_callables(key: str, value: Any) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """Return what ``env_wrapper`` or a similar key names, in order: callables with their keyword arguments.

    Raises:
        UserError: a path that cannot be imported.

    >>> [(wrapper, keywords)] = named_callables("env_wrapper", {"gymnasium.wrappers.ResizeObservation": {"shape": [8]}})
    >>> wrapper.__name__, keywords
    ('ResizeObservation', {'shape': [8]})
    """
    found = []
    for entry in value if isinstance(value, (list, tuple)) else [] if value is None else [value]:
        path, keywords = next(iter(entry.items())) if isinstance(entry, Mapping) else (entry, None)
        found.append((imported(key, path), keyword_arguments(keywords) or {}))
    return found


def keywords_of(taker: Callable[..., Any]) -> set[str]:
    """Return the keywords that a class or function takes, following ``**kwargs`` up to the parent classes.

    >>> sorted(keywords_of(checked_value))
    ['key', 'value']
    """
    bases = taker.__mro__ if isinstance(taker, type) else ()
    keywords: set[str] = set()
    for function in [vars(base)["__init__"] for base in bases if "__init__" in vars(base)] or [taker]:
        parameters = inspect.signature(function).parameters.values()
        keywords |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return keywords - {"self"}
