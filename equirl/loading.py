"""Trained agents from disk: our run folders, RL Zoo's, and zips of SB3, without running anything that they hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from equirl.archives import load_parameters, read_archive
from equirl.config import algorithm_class, read_yaml
from equirl.errors import UserError
from equirl.folders import read_settings
from equirl.foreign import lone_settings, zoo_settings
from equirl.runs import Settings, build_model, make_vec_env

_PICKLES = {"replay_buffer.pkl": "the replay buffer starts empty", "vecnormalize.pkl": "observations stay as they are"}


@dataclass(frozen=True)
class Found:
    """A trained agent on disk.

    Attributes:
        settings: how it was trained, and the symmetry and method it has.
        weights: its zip.
        notes: what was assumed, or left unread; a sentence each.
        trust: whether the zip is unpickled, which runs what its author put there.
    """

    settings: Settings
    weights: Path
    notes: list[str] = field(default_factory=list)
    trust: bool = False


def find_agent(
    path: str | os.PathLike[str],
    env_id: str | None = None,
    algo: str | None = None,
    trust: bool = False,
    packages: Collection[str] = (),
) -> Found:
    """Return what there is to know of an agent before it is built; weights are not yet compared with anything.

    Args:
        path: a run folder of ours or of RL Zoo, a zip in one, or a zip of SB3 alone.
        env_id: the environment, where the files do not tell or another version is meant.
        algo: the algorithm, where a zip alone does not tell.
        trust: let pickles be loaded and dotted paths lead anywhere, which runs what the files' author put there.
        packages: where dotted paths in config.yml may lead beside the libraries that equirl stands on.

    Raises:
        UserError: no such file, or no settings that can be read without running code.
    """
    given, trusted = Path(path), None if trust else list(packages)
    if not given.exists():
        raise UserError(
            f"no agent at {str(path)!r}: expected a run folder such as logs/dqn/CartPole-v1_1, or a zip of SB3"
        )
    folder = _folder_of(given)
    if folder is None:
        archive = read_archive(given)
        settings, notes = lone_settings(archive, env_id, algo, trusted)
        return Found(settings, given, [*notes, *_unread(given, archive.unread)], trust)
    [args_file] = folder.glob("*/args.yml")
    config = read_yaml(args_file.with_name("config.yml"))
    if isinstance(config, dict) and {"symmetry", "method"} <= config.keys():
        settings, notes = read_settings(folder, trusted), []
        if env_id is not None:
            settings = replace(settings, env_id=env_id)
    else:
        settings, notes = _zoo(args_file, config, env_id, trusted)
    if algo not in (None, settings.algo):
        raise UserError(f"--algo {algo} with {str(path)!r}: expected {settings.algo}, as its args.yml says")
    weights = given if given.is_file() else folder / f"{args_file.parent.name}.zip"
    if not weights.is_file():
        raise UserError(f"no weights at {str(weights)!r}: expected the zip that training writes there")
    settings, more = _statistics(settings, args_file.parent, trust)
    return Found(settings, weights, [*notes, *more, *_unread(weights, read_archive(weights).unread)], trust)


def load_agent(path: str | os.PathLike[str], **how: Any) -> tuple[Any, Settings]:
    """Return the agent at a path and the settings that it was trained with.

    Args:
        path: a run folder of ours or of RL Zoo, a zip in one, or a zip of SB3 alone.
        how: the further arguments of `find_agent`.

    Raises:
        UserError: no agent there, or weights that do not fit.
    """
    found = find_agent(path, **how)
    return agent_of(found), found.settings


def agent_of(found: Found, optimizers: bool = False) -> Any:
    """Return the agent itself: a fresh model of its settings with the weights of its zip.

    Args:
        found: what `find_agent` returned.
        optimizers: take the optimizers' states too, to go on training.

    Raises:
        UserError: weights that do not fit, or a zip that SB3 cannot unpickle.
    """
    model = fresh_model(found.settings)
    if found.trust:
        return _unpickled(found, model)
    load_parameters(model, read_archive(found.weights), optimizers=optimizers)
    return model


def fresh_model(settings: Settings) -> Any:
    """Return an untrained model of these settings that only acts: it holds no replay buffer to speak of."""
    model: Any = build_model(settings, make_vec_env(settings, n_envs=1), learns=False)
    model.policy.set_training_mode(False)
    return model


def _folder_of(given: Path) -> Path | None:
    """Return the run folder around a path, None for a zip in no run folder."""
    folder = given if given.is_dir() else given.parent.parent if given.parent.name == "checkpoints" else given.parent
    count = len(list(folder.glob("*/args.yml")))
    if given.is_dir() and count != 1:
        raise UserError(f"{str(given)!r} is no run folder: expected <env>/args.yml and <env>/config.yml in it")
    return folder if count == 1 else None


def _zoo(
    args_file: Path, config: Any, env_id: str | None, trusted: Collection[str] | None
) -> tuple[Settings, list[str]]:
    args = read_yaml(args_file)
    for path, data, keys in (
        (args_file, args, ("algo", "env")),
        (args_file.with_name("config.yml"), config, ("policy",)),
    ):
        if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in keys):
            raise UserError(f"{path}: expected a mapping with {' and '.join(keys)}")
    try:
        return zoo_settings(args, config, env_id, trusted)
    except UserError as error:
        raise UserError(f"{args_file.parent}: {error}") from None


def _statistics(settings: Settings, folder: Path, trust: bool) -> tuple[Settings, list[str]]:
    """Return the settings with the statistics that observations were normalised by, and notes on pickles left aside."""
    normalized = bool(settings.hyperparameters.get("normalize"))
    pickles = [path for path in (folder / "vecnormalize.pkl", folder.parent / "replay_buffer.pkl") if path.exists()]
    if not normalized:
        return settings, [f"{path.name} is pickled Python and was not read: {_PICKLES[path.name]}" for path in pickles]
    path = folder / "vecnormalize.pkl"
    if not path.is_file():
        raise UserError(f"config.yml says normalize: expected the statistics in {str(path)!r}")
    if not trust:
        raise UserError(
            f"{str(path)!r}: the agent reads observations normalised by it, and it is pickled Python: expected "
            "--trust, which runs what its author put there, or an agent trained without normalize"
        )
    return replace(settings, normalizer=_normalizer(path)), []


def _normalizer(path: Path) -> Callable[[Any], Any]:
    """Return a wrapper of environments that normalises as the statistics of an unpickled file say."""
    from stable_baselines3.common.vec_env import VecNormalize

    def wrap(env: Any) -> Any:
        try:
            normalized = VecNormalize.load(str(path), env)
        except Exception as error:  # a pickle can raise anything
            raise UserError(f"{str(path)!r} cannot be unpickled: {' '.join(str(error).split())[:200]}") from None
        normalized.training = normalized.norm_reward = False
        return normalized

    return wrap


def _unread(path: Path, notes: list[str]) -> list[str]:
    return [f"{path.name}: {note}" for note in notes]


def _unpickled(found: Found, model: Any) -> Any:
    """Return what SB3's own `load` makes of a zip, as an agent with the symmetry and method of the settings."""
    from equirl.agents.wrapping import symmetrize_model

    chosen = found.settings
    try:
        loaded = algorithm_class(chosen.algo).load(found.weights, env=model.get_env(), device=chosen.device)
    except Exception as error:  # a pickle can raise anything
        raise UserError(f"{str(found.weights)!r} cannot be unpickled: {' '.join(str(error).split())[:200]}") from None
    wrapped = symmetrize_model(loaded, chosen.symmetry, chosen.method)
    wrapped.policy.set_training_mode(False)
    return wrapped
