"""Trained agents from disk: our run folders, RL Zoo's, and zips of SB3, without running anything that they hold."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from equirl.archives import Archive, check_fit, load_parameters, read_archive
from equirl.config import algorithm_class, read_yaml
from equirl.errors import UserError
from equirl.folders import read_settings
from equirl.foreign import check_frames, current_id, lone_settings, method_of, zoo_settings
from equirl.hyperparameters import keyword_arguments
from equirl.methods import NATIVE
from equirl.runs import Settings, build_model, make_vec_env

_PICKLES = {"replay_buffer.pkl": "the replay buffer starts empty", "vecnormalize.pkl": "observations stay as they are"}


@dataclass(frozen=True)
class Found:
    """A trained agent on disk.

    Attributes:
        settings: how it was trained, and the symmetry and method it has.
        archive: what its zip holds.
        notes: what was assumed, or left unread; a sentence each.
        trust: whether the zip is unpickled, which runs what its author put there.
        folder: the run folder around the zip, if there is one.
    """

    settings: Settings
    archive: Archive
    notes: list[str] = field(default_factory=list)
    trust: bool = False
    folder: Path | None = None

    @property
    def weights(self) -> Path:
        """Its zip."""
        return self.archive.path


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
    if not os.path.exists(given):  # unlike Path.exists, False for names that are too long
        raise UserError(
            f"no agent at {str(path)!r}: expected a run folder such as logs/dqn/CartPole-v1_1, or a zip of SB3"
        )
    if env_id is not None:
        current_id(env_id)
    folder = _folder_of(given)
    if folder is None:
        return _lone(read_archive(given), env_id, algo, trust, trusted)
    [args_file] = folder.glob("*/args.yml")
    config = read_yaml(args_file.with_name("config.yml"))
    if isinstance(config, dict) and {"symmetry", "method"} <= config.keys():
        settings, notes = read_settings(folder, trusted), list[str]()
        if env_id is not None:
            env_id, notes = current_id(env_id)
            settings = replace(settings, env_id=env_id)
    else:
        settings, notes = _zoo(args_file, config, env_id, trusted)
    if algo not in (None, settings.algo):
        raise UserError(f"--algo {algo} with {str(path)!r}: expected {settings.algo}, as its args.yml says")
    weights = given if given.is_file() else folder / f"{args_file.parent.name}.zip"
    if not weights.is_file():
        raise UserError(f"no weights at {str(weights)!r}: expected the zip that training writes there")
    archive = read_archive(weights)
    if method_of(archive) not in (None, settings.method):  # another agent's, put into this folder
        return _lone(archive, env_id or settings.env_id, algo or settings.algo, trust, trusted)
    settings, more = _statistics(settings, args_file.parent, trust)
    _check_sizes(archive, settings)
    return Found(settings, archive, [*notes, *more, *_notes(archive, trust)], trust, folder)


def _lone(
    archive: Archive, env_id: str | None, algo: str | None, trust: bool, trusted: Collection[str] | None
) -> Found:
    """Return what a zip tells with nothing around it."""
    settings, notes = lone_settings(archive, env_id, algo, trusted)
    _check_sizes(archive, settings)
    return Found(settings, archive, [*notes, *_notes(archive, trust)], trust)


def _notes(archive: Archive, trust: bool) -> list[str]:
    name = archive.path.name
    if trust:
        return [f"--trust: {name} is unpickled, which runs whatever its author put there"]
    return [f"{name}: {note}" for note in archive.unread]


def _check_sizes(archive: Archive, settings: Settings) -> None:
    """Refuse settings of networks larger than the weights, which would fill the memory before they are compared."""
    check_frames(settings.hyperparameters)
    held = sum(tensor.numel() for tensor in archive.parameters["policy"].values())
    policy_kwargs = keyword_arguments(settings.hyperparameters.get("policy_kwargs")) or {}
    most = held * _shared(settings, policy_kwargs)
    waiting: list[Any] = [policy_kwargs]
    while waiting:
        value = waiting.pop()
        parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        waiting += [part for part in parts if isinstance(part, dict | list)]
        sizes = [part for part in parts if isinstance(part, int)]
        if max([*sizes, *(a * b for a, b in pairwise(sizes) if isinstance(value, list))], default=0) > most:
            raise UserError(f"{archive.path}: policy_kwargs {value!r}: its policy.pth has {held} weights in all")


def _shared(settings: Settings, policy_kwargs: dict[str, Any]) -> float:
    """Return how many entries of a layer share a weight, at the widths that `policy_kwargs` says."""
    if settings.method != NATIVE:
        return 1.0
    from equirl.agents.native import width_in

    options = keyword_arguments(policy_kwargs.get("symmetrizer_kwargs")) or {}
    return float(len(settings.symmetry.group)) / width_in(options) ** 2


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
    try:
        load_parameters(model, found.archive, optimizers=optimizers)
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(str(found.weights)) else f"{found.weights}: {said}") from None
    return model


def fit(agent: Any, model: Any, weights: Path) -> None:
    """Give a model what another has learnt, as `copy_parameters` does.

    Raises:
        UserError: networks of other shapes; it names the file that the weights came from.
    """
    from equirl.agents.wrapping import copy_parameters, without_symmetrizers

    try:
        check_fit(without_symmetrizers(agent), model, fresh=("symmetrizer",))
        copy_parameters(agent, model)
    except UserError as error:
        raise UserError(f"{weights}: {error}") from None
    except (KeyError, RuntimeError, ValueError) as error:  # what torch says of a symmetrizer's own weights
        raise UserError(f"{weights}: its weights do not fit: {' '.join(str(error).split())[:200]}") from None


def fresh_model(settings: Settings) -> Any:
    """Return an untrained model of these settings that only acts: it holds no replay buffer to speak of."""
    try:
        model: Any = build_model(settings, make_vec_env(settings, n_envs=1), learns=False)
    except UserError:
        raise
    except (AssertionError, MemoryError, RuntimeError, TypeError, ValueError) as error:  # what SB3 and torch raise
        raise UserError(f"{settings.algo} on {settings.env_id}: {' '.join(str(error).split())[:300]}") from None
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
    path, buffer = folder / "vecnormalize.pkl", folder.parent / "replay_buffer.pkl"
    normalize = settings.hyperparameters.get("normalize")
    normalized = normalize is True or (bool(normalize) and (keyword_arguments(normalize) or {}).get("norm_obs", True))
    left = [*([] if normalized else [path]), *([] if trust else [buffer])]
    notes = [f"{x.name} is pickled Python and was not read: {_PICKLES[x.name]}" for x in left if x.exists()]
    if not normalized:
        return settings, notes
    if not path.is_file():
        raise UserError(f"config.yml says normalize: expected the statistics in {str(path)!r}")
    if not trust:
        raise UserError(
            f"{str(path)!r}: the agent reads observations normalised by it, and it is pickled Python: expected "
            "--trust, which runs what its author put there, or an agent trained without normalize"
        )
    return replace(settings, normalizer=_normalizer(path)), notes


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


def _unpickled(found: Found, model: Any) -> Any:
    """Return what SB3's own `load` makes of a zip, as an agent with the symmetry and method of the settings.

    With a folder around it the hyper-parameters are those of config.yml: what cannot be unpickled any more, SB3
    replaces by defaults with no more than a warning.
    """
    from equirl.agents.symmetric import SymmetricPolicy
    from equirl.agents.wrapping import symmetrize_model

    chosen, env = found.settings, model.get_env()
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}  # once of the package gym
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = algorithm_class(chosen.algo).load(
                found.weights, env=env, device=chosen.device, custom_objects=spaces
            )
    except Exception as error:  # a pickle can raise anything
        raise UserError(f"{str(found.weights)!r} cannot be unpickled: {' '.join(str(error).split())[:200]}") from None
    if found.folder is not None:
        fit(loaded, model, found.weights)
        return model
    if not isinstance(loaded.policy, SymmetricPolicy):
        loaded = symmetrize_model(loaded, chosen.symmetry, chosen.method)
    loaded.policy.set_training_mode(False)
    return loaded
