"""One run: its settings, its environments, its model, and the folder that RL Zoo's own tools read too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import yaml
from gymnasium.vector import AutoresetMode

from equirl.config import (
    algorithm_class,
    algorithm_kwargs,
    load_hyperparameters,
    policy_class,
    read_yaml,
    validate,
)
from equirl.envs import entries_of
from equirl.envs.vector import VectorEnvAdapter
from equirl.errors import UserError, unknown
from equirl.hyperparameters import keyword_arguments, named_callables
from equirl.symmetry import Symmetry, resolve_symmetry, symmetry_of

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

# For games that the catalogue lacks: the whole picture (SB3's own AtariWrapper would need OpenCV).
ATARI_WRAPPER = {"equirl.envs.atari.SymmetricAtari": {"crop": [0, 210, 0, 160]}}
EVALUATION_SEED = 10_000  # added to the run's seed, so that training and evaluation never share an episode


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run, as plain data: what config.yml and args.yml hold."""

    algo: str
    env_id: str
    hyperparameters: dict[str, Any]
    seed: int = 0
    device: str = "auto"
    extra: dict[str, Any] = field(default_factory=dict)  # further entries of args.yml

    @property
    def method(self) -> str:
        """The name of the method that makes the network equivariant."""
        return str(self.hyperparameters["method"])

    @property
    def symmetry(self) -> Symmetry:
        """The symmetry on what the policy sees: frames stacked where the run stacks them."""
        return resolve_symmetry(self.hyperparameters["symmetry"]).stacked(self.hyperparameters.get("frame_stack", 1))

    @property
    def n_timesteps(self) -> int:
        """How many environment steps to train for."""
        return int(self.hyperparameters["n_timesteps"])

    @property
    def n_envs(self) -> int:
        """How many environments are stepped side by side."""
        return int(self.hyperparameters.get("n_envs", 1))


def settings_of(
    algo: str,
    env_id: str,
    overrides: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Settings:
    """Return the settings of a run, checked as a whole: names, values, spaces, and that the agent can be built.

    Args:
        algo: the algorithm's name, for instance ``"dqn"``.
        env_id: a Gymnasium id.
        overrides: hyper-parameters that replace those of the configuration, `symmetry` and `method` among them.
        config_file: a YAML file in RL Zoo's format in place of the packaged one.
        seed: the seed of everything random, at least 0.
        device: where torch computes.

    Raises:
        UserError: at the first mistake, in one line.

    >>> settings_of("dqn", "CartPole-v1").symmetry.group
    C2
    """
    if seed < 0:
        raise UserError(f"seed {seed}: expected a whole number of at least 0")
    atari = "AtariEnv" in str(_spec(env_id).entry_point)
    hyperparameters = load_hyperparameters(algo, env_id, atari=atari, config_file=config_file, overrides=overrides)
    hyperparameters.setdefault("method", "identity")
    _choose_symmetry(hyperparameters, env_id, atari)
    if hyperparameters.get("normalize"):
        raise UserError(
            f"normalize {hyperparameters['normalize']!r}: expected false, since running statistics that are not tied "
            "over orbits break the symmetry"
        )
    settings = Settings(algo, env_id, dict(sorted(hyperparameters.items())), seed, device)
    _probe(settings)
    return settings


def _spec(env_id: str) -> gym.envs.registration.EnvSpec:
    try:
        return gym.spec(env_id)
    except gym.error.Error:
        raise unknown("environment", env_id, sorted(gym.registry)) from None


def _choose_symmetry(hyperparameters: dict[str, Any], env_id: str, atari: bool) -> None:
    """Settle ``symmetry: auto``, and take the wrapper that makes the catalogued symmetry hold."""
    entries = entries_of(env_id)
    wrapper = entries[0].wrapper if entries else ATARI_WRAPPER if atari else None
    if wrapper:
        hyperparameters.setdefault("env_wrapper", wrapper)
    if hyperparameters.get("symmetry", "auto") != "auto":
        return
    if entries:
        hyperparameters["symmetry"] = entries[0].name
        return
    found = symmetry_of(env_id)
    if found is None and hyperparameters["method"] != "identity":
        raise UserError(
            f"no known symmetry of {env_id!r}: expected --symmetry with a name that `equirl symmetries` lists, "
            "or --symmetry none --method identity for a plain agent"
        )
    hyperparameters["symmetry"] = "none" if found is None else found.name


def _probe(settings: Settings) -> None:
    """Build environment and agent once, small and without a trace, so that every mistake shows before a run starts."""
    env = make_vec_env(settings, n_envs=1, seed=settings.seed)
    small = {"buffer_size": 1} if "buffer_size" in settings.hyperparameters else {}
    try:
        settings.symmetry.check_spaces(*_policy_spaces(env))
        build_model(settings, env, **small)
    except UserError:
        raise
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"{settings.algo} on {settings.env_id}: {' '.join(str(error).split())}") from None
    finally:
        env.close()


def _policy_spaces(env: VecEnv) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Return the spaces as SB3's policies see them, pictures with their channels first."""
    from stable_baselines3.common.base_class import BaseAlgorithm

    wrapped = BaseAlgorithm._wrap_env(env)
    return wrapped.observation_space, wrapped.action_space


def make_vec_env(
    settings: Settings,
    n_envs: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    render_mode: str | None = None,
) -> VecEnv:
    """Return the environments of a run side by side, wrapped, monitored and seeded.

    Environments with a native vectorised twin use it where there is more than one and no wrapper.

    Args:
        settings: the run.
        n_envs: how many, by default as many as the run has.
        seed: of the first environment; the next ones follow.
        folder: where ``0.monitor.csv`` and so on are written, if anywhere.
        render_mode: passed to the environments.
    """
    from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor

    chosen = settings.hyperparameters
    count = settings.n_envs if n_envs is None else n_envs
    written = len(list(folder.glob("*.monitor.csv"))) if folder else 0  # a resumed run writes beside, never over
    wrappers = named_callables("env_wrapper", chosen.get("env_wrapper"))
    kwargs = {**(keyword_arguments(chosen.get("env_kwargs")) or {}), "render_mode": render_mode}
    with _readable_errors(settings.env_id):
        if count > 1 and _spec(settings.env_id).vector_entry_point and not wrappers:
            vector = gym.make_vec(
                settings.env_id,
                num_envs=count,
                vectorization_mode="vector_entry_point",
                vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
                **kwargs,
            )
            env: VecEnv = VecMonitor(VectorEnvAdapter(vector), filename=str(folder / str(written)) if folder else None)
            env.seed(seed)
        else:

            def wrap(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
                for wrapper, keywords in wrappers:
                    env = wrapper(env, **keywords)
                return env

            env = sb3_make_vec_env(
                settings.env_id,
                n_envs=count,
                seed=seed,
                start_index=written,
                monitor_dir=None if folder is None else str(folder),
                wrapper_class=wrap,
                env_kwargs=kwargs,
                monitor_kwargs=keyword_arguments(chosen.get("monitor_kwargs")),
            )
    for wrapper, keywords in named_callables("vec_env_wrapper", chosen.get("vec_env_wrapper")):
        env = wrapper(env, **keywords)
    stack = int(chosen.get("frame_stack", 1))
    return VecFrameStack(env, stack) if stack > 1 else env


@contextmanager
def _readable_errors(env_id: str) -> Iterator[None]:
    try:
        yield
    except gym.error.DependencyNotInstalled as error:
        extra = next((entry.extra for entry in entries_of(env_id) if entry.extra), None)
        fix = f"pip install 'equirl[{extra}]'" if extra else " ".join(str(error).split())
        raise UserError(f"environment {env_id!r} needs a package that is not installed: {fix}") from None
    except (TypeError, ValueError, gym.error.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"environment {env_id!r}: {' '.join(str(error).split())}") from None


def action_names(env: VecEnv) -> list[str]:
    """Return what the environment calls its discrete actions, or their numbers.

    >>> action_names(make_vec_env(settings_of("dqn", "CartPole-v1")))
    ['0', '1']
    """
    for source in ("action_names", "get_action_meanings"):
        try:
            found = env.get_attr(source)[0]
        except AttributeError:
            continue
        return [str(name) for name in (found() if callable(found) else found)]
    return [str(a) for a in range(int(getattr(env.action_space, "n", 0)))]


def build_model(settings: Settings, env: VecEnv, **changes: Any) -> BaseAlgorithm:
    """Return the run's SB3 model on these environments, its weights fresh.

    Args:
        settings: the run.
        env: what it learns on.
        changes: constructor arguments that replace those of the settings.
    """
    chosen = settings.hyperparameters
    kwargs: dict[str, Any] = {**algorithm_kwargs(chosen), **changes}
    stacked = settings.symmetry
    named = stacked == resolve_symmetry(chosen["symmetry"])  # a name where it says all, for readable zips
    kwargs["policy_kwargs"].update(symmetry=chosen["symmetry"] if named else stacked, method=settings.method)
    policy = policy_class(settings.algo, chosen["policy"])
    return algorithm_class(settings.algo)(policy, env, seed=settings.seed, device=settings.device, **kwargs)


def zoo_name(env_id: str) -> str:
    """Return an environment's id as RL Zoo writes it in file names.

    >>> zoo_name("ALE/Pong-v5")
    'ALE-Pong-v5'
    """
    return env_id.replace("/", "-")


def create_folder(log_folder: Path, settings: Settings) -> Path:
    """Create and return the next free folder ``<log_folder>/<algo>/<env>_<k>``, never one that exists.

    Raises:
        UserError: the folder cannot be written.
    """
    parent, name = Path(log_folder) / settings.algo, zoo_name(settings.env_id)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        taken = [re.fullmatch(re.escape(name) + r"_(\d+)", path.name) for path in parent.iterdir()]
        number = max((int(match[1]) for match in taken if match), default=0)
        while True:
            number += 1
            folder = parent / f"{name}_{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue  # another run took it between the look and the making
            (folder / name).mkdir()
            return folder
    except OSError as error:
        raise UserError(
            f"log folder {str(log_folder)!r}: expected a folder that can be written: {error.strerror}"
        ) from None


def write_settings(folder: Path, settings: Settings) -> None:
    """Write config.yml and args.yml as RL Zoo does, as plain YAML."""
    target = folder / zoo_name(settings.env_id)
    args = {"algo": settings.algo, "env": settings.env_id, "seed": settings.seed, "device": settings.device}
    env_kwargs = keyword_arguments(settings.hyperparameters.get("env_kwargs")) or None
    args |= {"env_kwargs": env_kwargs, **settings.extra}
    for name, data in (("config.yml", settings.hyperparameters), ("args.yml", args)):
        (target / name).write_text(yaml.safe_dump(_plain(data), sort_keys=True), encoding="utf-8")


def read_settings(folder: str | os.PathLike[str]) -> Settings:
    """Return the settings of a run folder; nothing in it is executed or unpickled.

    Raises:
        UserError: no run folder, or one whose files do not hold plain, valid settings.
    """
    found = sorted(Path(folder).glob("*/args.yml"))
    if len(found) != 1:
        raise UserError(f"{str(folder)!r} is no run folder: expected <env>/args.yml and <env>/config.yml in it")
    args, hyperparameters = read_yaml(found[0]), read_yaml(found[0].with_name("config.yml"))
    for name, data, keys in (("args.yml", args, ("algo", "env")), ("config.yml", hyperparameters, ("policy",))):
        if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in keys):
            raise UserError(f"{found[0].with_name(name)}: expected a mapping with {' and '.join(keys)}")
    _spec(args["env"])
    settings = validate(args["algo"], hyperparameters)
    if not {"symmetry", "method"} <= set(settings):
        raise UserError(
            f"{found[0].with_name('config.yml')}: expected the keys symmetry and method, as equirl writes them"
        )
    known = {"algo", "env", "seed", "device", "env_kwargs"}
    extra = {key: value for key, value in args.items() if key not in known}
    return Settings(
        args["algo"], args["env"], settings, int(args.get("seed") or 0), str(args.get("device", "auto")), extra
    )


def _plain(value: Any) -> Any:
    """Turn dictionaries that are more than that (a Symmetry) into what YAML's safe writer knows."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
