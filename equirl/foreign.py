"""Settings of agents that equirl did not train: run folders of RL Zoo, and zips of SB3 with nothing around them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import gymnasium as gym

from equirl.agents.wrapping import OURS
from equirl.archives import Archive
from equirl.config import ALGORITHMS, OUR_KEYS, ZOO_KEYS, valid_keys, validate
from equirl.envs import default_entry
from equirl.envs.catalogue import ENTRIES
from equirl.errors import UserError, unknown
from equirl.hyperparameters import keyword_arguments
from equirl.runs import Settings, make_vec_env, spec_of
from equirl.symmetry import resolve_symmetry
from equirl.zoo import read_zoo_hyperparameters

MOST_FRAMES = 100
_MODULES = {
    "stable_baselines3.dqn.policies": "dqn",
    "sb3_contrib.qrdqn.policies": "qrdqn",
    "stable_baselines3.sac.policies": "sac",
    "stable_baselines3.td3.policies": "td3",
    **{algorithm.policies: name for name, algorithm in ALGORITHMS.items()},
}
_ACTOR_CRITIC = ("stable_baselines3.common.policies", "equirl.agents.actor_critic")
_CLASS = re.compile(r"<class '([\w.]+)'>")
_LINEAR = re.compile(r"LinearSchedule\(start=([-+.\de]+), end=([-+.\de]+), end_fraction=([-+.\de]+)\)")


def current_id(env_id: str) -> tuple[str, list[str]]:
    """Return the id under which Gymnasium has an environment today, and a note where that is another version.

    Raises:
        UserError: there is no such environment in any later version.

    >>> current_id("LunarLander-v2")
    ('LunarLander-v3', ['LunarLander-v2 is no longer in Gymnasium: taking LunarLander-v3'])
    """
    try:
        return str(spec_of(env_id).id), []
    except UserError as error:
        found = re.fullmatch(r"([\w/-]+)-v(\d{1,9})", env_id)
        versions = [] if found is None else [spec for spec in gym.registry.values() if _base(spec) == found[1]]
        later = [spec for spec in versions if (spec.version or 0) > int(found[2] if found else 0)]
        if not later:
            raise error from None
        latest = max(later, key=lambda spec: spec.version or 0).id
        return latest, [f"{env_id} is no longer in Gymnasium: taking {latest}"]


def _base(spec: Any) -> str:
    return f"{spec.namespace}/{spec.name}" if spec.namespace else str(spec.name)


def zoo_settings(
    args: Mapping[str, Any], config: Mapping[str, Any], env_id: str | None, trusted: Collection[str] | None
) -> tuple[Settings, list[str]]:
    """Return the settings that RL Zoo's args.yml and config.yml describe, and notes on what was assumed.

    Args:
        args: the contents of args.yml.
        config: the contents of config.yml.
        env_id: the environment to take in place of the one in args.yml.
        trusted: packages that dotted paths may lead into, as `equirl.config.validate` takes them.

    Raises:
        UserError: what is in them is not plain, valid settings.
    """
    algo = args["algo"]
    if algo not in ALGORITHMS:
        raise UserError(f"args.yml: {unknown('algorithm', algo, ALGORITHMS)}")
    env_id, notes = current_id(env_id or args["env"])
    plain = dict(config)
    policy_kwargs = keyword_arguments(plain.get("policy_kwargs")) or {}
    own: dict[str, Any] = {key: policy_kwargs.pop(key) for key in ("symmetry", "method") if key in policy_kwargs}
    if own:
        plain["policy_kwargs"] = policy_kwargs
    try:
        hyperparameters, dropped = read_zoo_hyperparameters(algo, plain, trusted)
    except UserError as error:
        raise UserError(f"config.yml: {error}") from None
    if dropped:
        notes.append(f"config.yml: SB3 no longer has {', '.join(dropped)}")
    try:
        env_kwargs = keyword_arguments(args.get("env_kwargs"))
    except UserError:
        env_kwargs = None
    if env_kwargs is None:
        raise UserError(f"args.yml: env_kwargs {args['env_kwargs']!r}: expected keyword arguments or nothing")
    if env_kwargs:
        hyperparameters["env_kwargs"] = {**(keyword_arguments(hyperparameters.get("env_kwargs")) or {}), **env_kwargs}
    seed = args.get("seed")
    settings = Settings(
        algo, env_id, {**hyperparameters, **own}, seed if type(seed) is int and 0 <= seed < 2**32 else 0
    )
    return completed(settings, trusted), notes


def lone_settings(
    archive: Archive, env_id: str | None, algo: str | None, trusted: Collection[str] | None
) -> tuple[Settings, list[str]]:
    """Return the settings that a zip of SB3 alone tells, and notes on what was assumed.

    Args:
        archive: the zip.
        env_id: the environment; by default the one that the zip's symmetry is named after.
        algo: the algorithm; by default the one whose policy the zip names.
        trusted: packages that dotted paths may lead into.

    Raises:
        UserError: the zip does not tell, or holds values that no model can have.
    """
    algo = algo or _algorithm_of(archive)
    if algo not in ALGORITHMS:
        raise unknown("algorithm", algo, ALGORITHMS)
    told, policy_kwargs = _told(archive), _policy_kwargs(archive)
    own: dict[str, Any] = {key: policy_kwargs.pop(key) for key in ("symmetry", "method") if key in policy_kwargs}
    env_id = env_id or told.get("env") or _environment_of(own.get("symmetry"))
    if not isinstance(env_id, str):
        raise UserError(f"{archive.path}: no args.yml beside it says which environment: expected --env ID")
    env_id, notes = current_id(env_id)
    keys = set(valid_keys(algo))
    found: dict[str, Any] = {"policy": _policy(archive), "n_timesteps": _steps(archive)}
    found |= {key: value for key, value in told.items() if key in keys}
    known = keyword_arguments(told.get("policy_kwargs")) or policy_kwargs
    found["policy_kwargs"] = {key: value for key, value in (policy_kwargs | known).items() if key not in OURS}
    found["policy_kwargs"] |= {key: value for key, value in policy_kwargs.items() if key in OURS}
    pickled = []
    for key in keys - OUR_KEYS - ZOO_KEYS - {"policy_kwargs"} | {"n_envs"}:
        if archive.data.get(key) is not None:
            found[key] = archive.data[key]
        elif key in archive.twins and (schedule := _schedule(archive.twins[key])) is not None:
            found[key] = schedule
        elif key in archive.twins and key not in told and not key.endswith("_class"):
            pickled.append(key)
    if found.get("n_steps", 1) != 1 and isinstance(found.get("replay_buffer_kwargs"), Mapping):  # SB3 adds these two
        kept = {key: value for key, value in found["replay_buffer_kwargs"].items() if key not in ("n_steps", "gamma")}
        found["replay_buffer_kwargs"] = kept
    if pickled:
        notes.append(
            f"{archive.path.name}: {', '.join(sorted(pickled))}: pickled Python, not read; to train further give "
            "yours with -P, or SB3's defaults stand in"
        )
    try:
        checked = validate(algo, found | own, trusted)
        check_frames(checked)
        if "symmetry" in own:
            checked["symmetry"] = _unstacked(checked, told, own["symmetry"])
        return completed(Settings(algo, env_id, checked), trusted), notes
    except UserError as error:
        raise UserError(f"{archive.path}: member 'data': {error}") from None


def _told(archive: Archive) -> dict[str, Any]:
    """Return what equirl writes into its zips as plain data: the environment and every hyper-parameter."""
    told = archive.data.get("equirl_settings")
    return dict(told) if isinstance(told, Mapping) else {}


def _environment_of(symmetry: Any) -> str | None:
    """Return the environment that the catalogue has a symmetry for."""
    name = symmetry.get("name") if isinstance(symmetry, Mapping) else symmetry
    return next((entry.env_id for entry in ENTRIES if entry.name == name), None)


def _steps(archive: Archive) -> int:
    total = archive.data.get("_total_timesteps")
    return total if type(total) is int and total > 0 else 1


def _unstacked(checked: Mapping[str, Any], told: Mapping[str, Any], seen: Any) -> Any:
    """Return the symmetry on one frame where the agent sees several, as settings have it."""
    frames = checked.get("frame_stack", 1)
    if frames == 1:
        return seen
    single = told.get("symmetry", "none")
    if resolve_symmetry(single).stacked(frames) != resolve_symmetry(seen):
        raise UserError(f"{frames} frames and a symmetry that is not {single!r} on each: expected the run's folder")
    return single


def check_frames(hyperparameters: Mapping[str, Any]) -> None:
    """Refuse a stack of frames that would fill the memory, in files that somebody else wrote."""
    if hyperparameters.get("frame_stack", 1) > MOST_FRAMES:
        raise UserError(f"frame_stack {hyperparameters['frame_stack']}: expected at most {MOST_FRAMES}")


def method_of(archive: Archive) -> str | None:
    """Return the method that a zip names, None where it is a plain agent's."""
    method = _policy_kwargs(archive).get("method")
    return method if isinstance(method, str) else None


def completed(settings: Settings, trusted: Collection[str] | None) -> Settings:
    """Return settings with the two keys of ours: a plain agent's symmetry is the catalogue's where that fits."""
    hyperparameters = dict(settings.hyperparameters)
    check_frames(hyperparameters)
    hyperparameters.setdefault("method", "identity")
    if "symmetry" not in hyperparameters:
        hyperparameters["symmetry"] = "none"
        entry = default_entry(settings.env_id)
        found = Settings(settings.algo, settings.env_id, {**hyperparameters, "symmetry": entry.name}) if entry else None
        if entry and found and _fits(found, entry.kwargs):
            hyperparameters["symmetry"] = entry.name
    validate(settings.algo, hyperparameters, trusted)
    return Settings(settings.algo, settings.env_id, dict(sorted(hyperparameters.items())), settings.seed)


def _fits(settings: Settings, kwargs: Mapping[str, Any]) -> bool:
    """Whether the catalogue's symmetry acts on the spaces of an agent that was trained without it."""
    given = keyword_arguments(settings.hyperparameters.get("env_kwargs")) or {}
    if any(given.get(key) != value for key, value in kwargs.items()):
        return False
    env, symmetry = make_vec_env(settings, n_envs=1), settings.symmetry
    try:
        if symmetry.sides is not None:  # pictures, that SB3 has not turned channels first yet
            symmetry = symmetry.fitted(env.observation_space)
        symmetry.check_spaces(env.observation_space, env.action_space)
    except UserError:
        return False
    finally:
        env.close()
    return True


def _algorithm_of(archive: Archive) -> str:
    module = archive.twins.get("policy_class", {}).get("__module__")
    module = module if isinstance(module, str) else ""
    if module in _ACTOR_CRITIC:
        return "ppo" if "n_epochs" in archive.data else "a2c"
    if module not in _MODULES:
        raise UserError(f"{archive.path}: its policy is of {module!r}: expected --algo, one of {', '.join(ALGORITHMS)}")
    return _MODULES[module]


def _policy(archive: Archive) -> str:
    """Return SB3's name of the policy whose networks a zip holds."""
    names = [key for key in archive.parameters["policy"] if "features_extractor" in key]
    if any("features_extractor.extractors." in name for name in names):
        return "MultiInputPolicy"
    return "CnnPolicy" if any("features_extractor.cnn." in name for name in names) else "MlpPolicy"


def _policy_kwargs(archive: Archive) -> dict[str, Any]:
    """Return the policy's keyword arguments, classes of torch as their names."""
    given = archive.data.get("policy_kwargs") or archive.twins.get("policy_kwargs") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"{archive.path}: member 'data': policy_kwargs: expected a mapping")
    kept = {}
    for key, value in given.items():
        if key == ":type:" or value is None or (key == "use_sde" and not value):
            continue
        named = _CLASS.fullmatch(value) if isinstance(value, str) else None
        path = named[1] if named else value
        kept[key] = f"nn.{path.rpartition('.')[2]}" if named and key == "activation_fn" else path
    return kept


def _schedule(twin: Mapping[str, Any]) -> float | str | None:
    """Return the number or ``lin_x`` that a pickled schedule's readable twin tells, if it does.

    >>> _schedule({"value_schedule": "LinearSchedule(start=0.001, end=0.0, end_fraction=1.0)"})
    'lin_0.001'
    """
    text = str(twin.get("value_schedule", ""))
    constant = re.fullmatch(r"ConstantSchedule\(val=([-+.\de]+)\)", text)
    linear = _LINEAR.fullmatch(text)
    start, end, fraction = linear.groups() if linear else (twin.get(key) for key in ("start", "end", "end_fraction"))
    if "SimpleLinearSchedule" in str(twin.get(":type:")):  # RL Zoo's
        start, end, fraction = twin.get("initial_value"), 0, 1
    try:
        if constant:
            return float(constant[1])
        start, end, fraction = float(start), float(end), float(fraction)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return f"lin_{start!r}" if (end, fraction) == (0.0, 1.0) and 0 < start < math.inf else None
