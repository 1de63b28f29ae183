"""What a hyper-parameter's value says: a parser for what is typed on a command line, and the dotted paths in it.

Nothing here evaluates what a user wrote; dotted paths are imported, as RL Zoo does.
"""

import ast
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any, cast

from equirl.errors import UserError, unknown

ACTIVATIONS = ("nn.ReLU", "nn.Tanh", "nn.ELU", "nn.LeakyReLU", "nn.SiLU", "nn.GELU")
OPTIMIZERS = {f"optim.{name}": f"torch.optim.{name}" for name in ("Adam", "AdamW", "RMSprop", "SGD")}
OPTIMIZERS["RMSpropTFLike"] = "stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike"
_NAMES = dict(zip(ACTIVATIONS, ACTIVATIONS, strict=True)) | OPTIMIZERS
CLASS_NAMES = _NAMES | {f"{torch}.{name}": known for torch in ("torch", "th") for name, known in _NAMES.items()}
"""Ours of every name that may stand for a class in ``dict(...)``, as RL Zoo's files write them."""

TRUSTED = (
    *("equirl", "gymnasium", "stable_baselines3", "sb3_contrib", "ale_py", "minigrid.wrappers", "minatar"),
    *("rl_zoo3.wrappers", "rl_zoo3.callbacks"),  # importing rl_zoo3.benchmark starts trainings
    *("torch.nn", "torch.optim"),
)
"""Packages from which the paths in somebody else's files are imported: those that equirl itself stands on."""


def parse_value(text: str) -> Any:
    """Return the plain value that a text such as ``0.001`` or ``dict(net_arch=[64, 64])`` stands for.

    Numbers, strings, lists, dicts, None, True, False and ``dict(...)`` are read as Python reads them; tuples become
    lists, classes such as ``nn.ReLU`` or ``th.nn.ReLU`` become their names, and a bare word is a string. Nothing is
    ever executed.

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
            raise unknown("name", part, _NAMES) from None
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
        case ast.Attribute() | ast.Name() if ast.unparse(node) in CLASS_NAMES:
            return CLASS_NAMES[ast.unparse(node)]
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
    return float(found[1]) if found and 0 < float(found[1]) < math.inf else None


def is_path(value: Any) -> bool:
    """Whether a value is a name, or several joined by dots.

    >>> is_path("gymnasium.wrappers.TimeLimit"), is_path("os.system('ls')")
    (True, False)
    """
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))


# What a dotted path may name, by key: a run folder that somebody hands over must not get to call just anything.
_BASES = {
    "env_wrapper": "gymnasium.Wrapper",
    "vec_env_wrapper": "stable_baselines3.common.vec_env.VecEnvWrapper",
    "callback": "stable_baselines3.common.callbacks.BaseCallback",
    "replay_buffer_class": "stable_baselines3.common.buffers.ReplayBuffer",
    "rollout_buffer_class": "stable_baselines3.common.buffers.RolloutBuffer",
    "policy": "stable_baselines3.common.policies.BasePolicy",
    "features_extractor_class": "stable_baselines3.common.torch_layers.BaseFeaturesExtractor",
    "optimizer_class": "torch.optim.Optimizer",
}


def imported(key: str, path: str, trusted: Collection[str] | None = None) -> Callable[..., Any]:
    """Return the class or function that the dotted path given for a key names.

    Args:
        key: the hyper-parameter.
        path: what it says.
        trusted: None imports from any package. A collection, for a path in a file that somebody else wrote, imports
            from `TRUSTED` and the packages in it alone, since importing a module runs its code.

    Raises:
        UserError: there is none, it is no subclass of what the key stands for, or it is in a package not trusted.

    >>> imported("env_wrapper", "gymnasium.wrappers.TimeLimit").__name__
    'TimeLimit'
    >>> imported("env_wrapper", "antigravity.Wrapper", trusted=[])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    equirl.errors.UserError: env_wrapper 'antigravity.Wrapper': expected a class of equirl, gymnasium, ...
    """
    if trusted is not None and not any(path.startswith(f"{package}.") for package in (*TRUSTED, *trusted)):
        known = ", ".join(dict.fromkeys([*TRUSTED, *trusted]))
        raise UserError(
            f"{key} {path!r}: expected a class of {known}; name its package with --gym-packages, or --trust the folder"
        )
    module, _, name = path.rpartition(".")
    base = _BASES.get(key)
    try:
        if "__main__" in path.split("."):
            raise ImportError("__main__ is a program")
        found = getattr(import_module(module), name)
    except ImportError as error:
        reason = " ".join(str(error).split())
    except AttributeError:
        reason = f"module {module} has no {name}"
    except Exception as error:  # importing runs the module, which may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        if callable(found) and (base is None or _is_subclass(found, base)):
            return cast("Callable[..., Any]", found)
        reason = "it is none"
    expected = f"a subclass of {base}" if base else "a class or function"
    raise UserError(f"{key} {path!r}: expected the dotted path of {expected}: {reason}")


def _is_subclass(found: Any, base: str) -> bool:
    module, _, name = base.rpartition(".")
    return isinstance(found, type) and issubclass(found, getattr(import_module(module), name))


def policy_part(key: str, value: Any, trusted: Collection[str] | None = None) -> Callable[..., Any]:
    """Return the class that a keyword of policies names: ``features_extractor_class`` or ``optimizer_class``.

    Raises:
        UserError: as `imported`.

    >>> policy_part("optimizer_class", "optim.AdamW").__name__
    'AdamW'
    """
    path = str(value)
    return imported(key, CLASS_NAMES.get(path, path) if key == "optimizer_class" else path, trusted)


def named_callables(
    key: str, value: Any, trusted: Collection[str] | None = None
) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """Return what ``env_wrapper`` or a similar key names, in order: callables with their keyword arguments.

    Raises:
        UserError: a path that cannot be imported, or not from the packages that are `trusted`.

    >>> [(wrapper, keywords)] = named_callables("env_wrapper", {"gymnasium.wrappers.ResizeObservation": {"shape": [8]}})
    >>> wrapper.__name__, keywords
    ('ResizeObservation', {'shape': [8]})
    """
    found = []
    for entry in value if isinstance(value, (list, tuple)) else [] if value is None else [value]:
        path, keywords = next(iter(entry.items())) if isinstance(entry, Mapping) else (entry, None)
        found.append((imported(key, path, trusted), keyword_arguments(keywords) or {}))
    return found


def keywords_of(taker: Callable[..., Any]) -> set[str]:
    """Return the keywords that a class or function takes, following ``**kwargs`` up to the parent classes.

    >>> keywords_of(linear_start)
    {'value'}
    """
    bases = taker.__mro__ if isinstance(taker, type) else ()
    keywords: set[str] = set()
    for function in [vars(base)["__init__"] for base in bases if "__init__" in vars(base)] or [taker]:
        parameters = inspect.signature(function).parameters.values()
        keywords |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return keywords - {"self"}
