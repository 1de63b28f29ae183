"""The folder of one run, laid out as RL Zoo lays out its own, so that its tools read it too."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from equirl.config import read_yaml, validate
from equirl.errors import UserError
from equirl.hyperparameters import keyword_arguments
from equirl.runs import Settings, spec_of

EXTRA = ("eval_freq", "eval_episodes", "save_freq")
"""The entries of args.yml that decide when a run is looked at; whole numbers of at least 1."""


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run folder meanwhile; where the system has no such locks, do nothing.

    Raises:
        UserError: another process trains in it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    place = os.open(folder, os.O_RDONLY)  # of the folder itself, so that nothing is left when a process dies
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(place)
        raise UserError(f"run {str(folder)!r}: expected a folder in which no other process trains") from None
    except OSError:  # some file systems lock no folders
        pass
    try:
        yield
    finally:
        os.close(place)


def write_settings(folder: Path, settings: Settings) -> None:
    """Write config.yml and args.yml as RL Zoo does, as plain YAML."""
    args = {"algo": settings.algo, "env": settings.env_id, "seed": settings.seed, "device": settings.device}
    env_kwargs = keyword_arguments(settings.hyperparameters.get("env_kwargs")) or None
    args |= {"env_kwargs": env_kwargs, **settings.extra}
    target = folder / zoo_name(settings.env_id)
    for name, data in (("config.yml", settings.hyperparameters), ("args.yml", args)):
        partial = target / f".{name}"  # never half of the settings of a run that could be resumed
        partial.write_text(yaml.safe_dump(data, sort_keys=True), encoding="utf-8")
        os.replace(partial, target / name)


def read_settings(folder: str | os.PathLike[str], trusted: Collection[str] | None = ()) -> Settings:
    """Return the settings of a run folder. Nothing is unpickled; the dotted paths in config.yml are imported.

    Args:
        folder: the run folder.
        trusted: packages that dotted paths may lead into beside those that equirl stands on; None lets them lead
            anywhere, which runs the code of any module.

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
    spec_of(args["env"])
    try:
        settings = validate(args["algo"], hyperparameters, trusted)
    except UserError as error:
        raise UserError(f"{found[0].with_name('config.yml')}: {error}") from None
    if not {"symmetry", "method"} <= set(settings):
        raise UserError(
            f"{found[0].with_name('config.yml')}: expected the keys symmetry and method, as equirl writes them"
        )
    for key, least in (("seed", 0), *((key, 1) for key in EXTRA)):
        most = 2**32 - 1 if key == "seed" else 2**63 - 1
        if type(args.get(key)) is not int or not least <= args[key] <= most:
            raise UserError(f"{found[0]}: {key} {args.get(key)!r}: expected a whole number from {least} to {most}")
    known = {"algo", "env", "seed", "device", "env_kwargs"}
    extra = {key: value for key, value in args.items() if key not in known}
    return Settings(args["algo"], args["env"], settings, args["seed"], str(args.get("device", "auto")), extra)
