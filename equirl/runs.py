"""One run: its settings, its environments and its model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode

from equirl.config import (
    action_noise,
    algorithm_class,
    algorithm_kwargs,
    load_hyperparameters,
    policy_class,
    valid_keys,
    validate,
)
from equirl.envs import default_entry, entries_of, register_minigrid
from equirl.envs.vector import VectorEnvAdapter
from equirl.errors import UserError, check_seed, in_one_line, unknown
from equirl.hyperparameters import keyword_arguments, named_callables
from equirl.symmetry import Symmetry, registered_symmetries, resolve_symmetry, symmetry_of

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
    normalizer: Callable[[VecEnv], VecEnv] | None = field(
        default=None, compare=False
    )  # of a foreign agent; never written

    @property
    def title(self) -> str:
        """What is run, in a few words."""
        return f"{self.algo} on {self.env_id}"

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
    check_seed(seed)
    _check_device(device)
    atari = _is_atari(env_id)
    hyperparameters = load_hyperparameters(algo, env_id, atari=atari, config_file=config_file, overrides=overrides)
    return prepared(Settings(algo, env_id, hyperparameters, seed, device))


def prepared(settings: Settings) -> Settings:
    """Return settings with their symmetry and method settled, once environment and agent could be built of them.

    Raises:
        UserError: at the first mistake, in one line.
    """
    hyperparameters = validate(settings.algo, settings.hyperparameters)
    hyperparameters.setdefault("method", "identity")
    _choose_symmetry(hyperparameters, settings.env_id, _is_atari(settings.env_id))
    settings = replace(settings, hyperparameters=dict(sorted(hyperparameters.items())))
    _probe(settings)
    return settings


def spec_of(env_id: str) -> gym.envs.registration.EnvSpec:
    """Return what Gymnasium has registered under an id.

    Raises:
        UserError: there is nothing.
    """
    if re.fullmatch(r"GymV2\dEnvironment-v0", env_id):
        raise UserError(f"environment {env_id!r}: expected Gymnasium's own, since old gym imports what an id names")
    with readable_errors(env_id):
        register_minigrid(env_id)
    try:
        return gym.spec(env_id)
    except (gym.error.Error, ValueError):  # the second where a version has thousands of digits
        raise unknown("environment", env_id, sorted(gym.registry)) from None


def _is_atari(env_id: str) -> bool:
    return "AtariEnv" in str(spec_of(env_id).entry_point)


def _check_device(device: str) -> None:
    """Refuse what torch cannot compute on here; SB3 would quietly take the CPU in place of a GPU that is missing."""
    try:
        if device != "auto":
            torch.zeros(1, device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError):
        raise unknown("device", device, ["auto", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]) from None


def _choose_symmetry(hyperparameters: dict[str, Any], env_id: str, atari: bool) -> None:
    """Settle ``symmetry: auto``, and take the keywords and the wrapper under which the catalogued symmetry holds."""
    chosen = hyperparameters.get("symmetry", "auto")
    named = next((entry for entry in entries_of(env_id) if entry.name == chosen and not entry.rejected), None)
    entry = named or default_entry(env_id)
    wrapper = entry.wrapper if entry else ATARI_WRAPPER if atari else None
    if wrapper:
        hyperparameters.setdefault("env_wrapper", wrapper)
    if entry and entry.kwargs:
        hyperparameters.setdefault("env_kwargs", dict(entry.kwargs))
    if chosen != "auto":
        return
    if entry:
        hyperparameters["symmetry"] = entry.name
        return
    with readable_errors(env_id):
        env = gym.make(env_id, **(keyword_arguments(hyperparameters.get("env_kwargs")) or {}))
    found = None if entries_of(env_id) else symmetry_of(env)
    env.close()
    if found is None and hyperparameters["method"] != "identity":
        unsure = ", ".join(entry.name for entry in entries_of(env_id) if not entry.rejected)
        hint = f"; listed, but not chosen by itself: {unsure}" if unsure else ""
        raise UserError(
            f"no known symmetry of {env_id!r}: expected --symmetry with a name that `equirl symmetries` lists, what "
            f"`equirl discover {env_id}` finds, or --symmetry none --method identity for a plain agent{hint}"
        )
    registered = found is not None and found.name in registered_symmetries() and resolve_symmetry(found.name) == found
    hyperparameters["symmetry"] = "none" if found is None else found.name if registered else dict(found)


def _probe(settings: Settings) -> None:
    """Build environment and agent once, small and without a trace, so that every mistake shows before a run starts."""
    from stable_baselines3.common.vec_env import unwrap_vec_normalize

    env = make_vec_env(settings, seed=settings.seed)
    try:
        if settings.hyperparameters.get("normalize") or unwrap_vec_normalize(env):
            raise UserError(
                "normalize, or VecNormalize as vec_env_wrapper: expected neither, since running statistics that are "
                "not tied over orbits break the symmetry"
            )
        with in_one_line(settings.title):
            build_model(settings, env, learns=False)
    finally:
        env.close()


def make_vec_env(
    settings: Settings,
    n_envs: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    render_mode: str | None = None,
    native: bool = True,
) -> VecEnv:
    """Return the environments of a run side by side, wrapped, monitored and seeded.

    Args:
        settings: the run.
        n_envs: how many, by default as many as the run has.
        seed: of the first environment; the next ones follow.
        folder: where ``0.monitor.csv`` and so on are written, if anywhere.
        render_mode: passed to the environments.
        native: whether more than one, without wrappers, may be one vectorised environment where there is such a twin.
    """
    from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor

    chosen = settings.hyperparameters
    count = settings.n_envs if n_envs is None else n_envs
    written = len(list(folder.glob("*.monitor.csv"))) if folder else 0  # a resumed run writes beside, never over
    wrappers = named_callables("env_wrapper", chosen.get("env_wrapper"))
    kwargs = {**(keyword_arguments(chosen.get("env_kwargs")) or {}), "render_mode": render_mode}
    with readable_errors(settings.env_id):
        if native and count > 1 and not wrappers and _resets_as_sb3(spec_of(settings.env_id).vector_entry_point):
            vector = gym.make_vec(
                settings.env_id,
                num_envs=count,
                vectorization_mode="vector_entry_point",
                autoreset_mode=AutoresetMode.SAME_STEP,
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
    if settings.normalizer is not None:
        env = settings.normalizer(env)
    stack = int(chosen.get("frame_stack", 1))
    return VecFrameStack(env, stack) if stack > 1 else env


def _resets_as_sb3(entry_point: Any) -> bool:
    """Whether a vectorised environment can reset in the step that ends an episode; Gymnasium's own mostly cannot."""
    if entry_point is None:
        return False
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    return "autoreset_mode" in inspect.signature(creator).parameters


@contextmanager
def readable_errors(env_id: str) -> Iterator[None]:
    """Turn what making an environment raises into one line, which names the extra that a missing package comes with."""
    try:
        yield
    except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        extra = next((entry.extra for entry in entries_of(env_id) if entry.extra), None)
        fix = f"pip install 'equirl[{extra}]'" if extra else " ".join(str(error).split())
        raise UserError(f"environment {env_id!r} needs a package that is not installed: {fix}") from None
    except (AssertionError, ImportError, TypeError, ValueError, gym.error.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"environment {env_id!r}: {' '.join(str(error).split())}") from None


def action_names(env: VecEnv) -> list[str]:
    """Return what the environment calls its actions, or the numbers of these, of choices or of entries of a Box.

    >>> action_names(make_vec_env(settings_of("dqn", "CartPole-v1")))
    ['0', '1']
    """
    for source in ("action_names", "get_action_meanings"):
        try:
            found = env.get_attr(source)[0]
        except AttributeError:
            continue
        return [str(name) for name in (found() if callable(found) else found)]
    from stable_baselines3.common.preprocessing import get_action_dim

    space = env.action_space
    if isinstance(space, gym.spaces.MultiDiscrete):
        return [f"{i}:{a}" for i, n in enumerate(space.nvec.ravel()) for a in range(n)]
    count = space.n if isinstance(space, gym.spaces.Discrete) else get_action_dim(space)
    return [str(a) for a in range(int(count))]


# The sizes of a buffer that is never filled.
_ACTS_ONLY = {"buffer_size": 1, "n_steps": 2, "batch_size": 2}


def _is_size(algo: str, key: str) -> bool:
    """Whether a key sets the size of an algorithm's buffer; DQN's n_steps and batch_size do not."""
    keys = valid_keys(algo)
    return key in keys and (key == "buffer_size" or "buffer_size" not in keys)


def build_model(settings: Settings, env: VecEnv, learns: bool = True) -> BaseAlgorithm:
    """Return the run's SB3 model on these environments, its weights fresh.

    Args:
        settings: the run.
        env: what it learns on.
        learns: whether it needs a buffer of experience, which may take gigabytes.
    """
    chosen = settings.hyperparameters
    kwargs: dict[str, Any] = algorithm_kwargs(chosen)
    noise = action_noise(chosen, env.action_space)
    if noise is not None:
        kwargs["action_noise"] = noise
    small = {} if learns else {key: size for key, size in _ACTS_ONLY.items() if _is_size(settings.algo, key)}
    kwargs |= small
    stacked = settings.symmetry
    named = stacked == resolve_symmetry(chosen["symmetry"])  # a name where it says all, for readable zips
    kwargs["policy_kwargs"].update(symmetry=chosen["symmetry"] if named else stacked, method=settings.method)
    policy = policy_class(settings.algo, chosen["policy"])
    model: Any = algorithm_class(settings.algo)(policy, env, seed=settings.seed, device=settings.device, **kwargs)
    defaults = inspect.signature(type(model)).parameters
    for key in small:
        setattr(model, key, chosen.get(key, defaults[key].default))  # as a saved model says it
    if getattr(model, "replay_buffer_class", None) and not kwargs.get("replay_buffer_class"):
        model.replay_buffer_class = None  # SB3's choice; were it saved, loading would warn of it beside n_steps above 1
    # Plain in the zip, so that it can be read there without unpickling: environment, wrappers, train_freq and so on.
    model.equirl_settings = {"env": settings.env_id, **chosen}
    return model  # type: ignore[no-any-return]
