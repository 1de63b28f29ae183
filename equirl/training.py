"""Train one agent: build, learn, evaluate, checkpoint, resume."""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat, configure
from stable_baselines3.common.vec_env import VecEnv
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from equirl.callbacks import CheckpointCallback, HyperparametersCallback, ProgressCallback, SymmetryCallback
from equirl.checkpoints import checkpoint_steps, load_checkpoint, save_checkpoint
from equirl.console import command_line, print_notes, progress_bar
from equirl.errors import UserError, in_one_line
from equirl.evaluation import evaluate, finite
from equirl.folders import create_folder, locked, read_settings, write_settings, zoo_name
from equirl.hyperparameters import named_callables
from equirl.runs import EVALUATION_SEED, Settings, action_names, build_model, make_vec_env

FINAL_EPISODES = 20
_AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # a path that wraps is no path


def train(
    settings: Settings,
    log_folder: Path,
    eval_freq: int | None = None,
    eval_episodes: int = 5,
    save_freq: int | None = None,
    console: Console | None = None,
    start: Callable[[Any], None] | None = None,
    compiled: bool = False,
) -> dict[str, Any]:
    """Train one agent into a new run folder, and return what came of it.

    Ctrl-C writes the agent and a checkpoint, from which `resume` goes on, before the KeyboardInterrupt is raised again.

    Args:
        settings: the run, checked by `settings_of`.
        log_folder: the run goes to ``<log_folder>/<algo>/<env>_<k>`` with the next free k.
        eval_freq: environment steps between evaluations; by default a twentieth of the run, but at least 1000 steps.
        eval_episodes: episodes an evaluation.
        save_freq: environment steps between checkpoints, a fifth of the run by default.
        console: where progress is drawn, standard error by default.
        start: gives the fresh model the weights that it starts from, for instance `equirl.conversion.start_from`.
        compiled: let the gradient steps of `equirl.agents.dqn.DQN` be one program, as its `compile` does.

    Returns:
        a JSON-able dictionary with `folder`, `mean_return`, `std_return`, `equivariance_error`, `seconds` and more.

    Raises:
        UserError: the log folder cannot be written, a number below 1, or an agent that cannot be built here.
    """
    total = settings.n_timesteps
    given = {"eval_freq": eval_freq, "save_freq": save_freq}
    often = _frequencies(total) | {name: value for name, value in given.items() if value is not None}
    extra = {"n_timesteps": total, "eval_episodes": eval_episodes, **often}
    for name, value in extra.items():
        if value < 1:
            raise UserError(f"{name} {value}: expected a whole number of at least 1")
    settings = replace(settings, extra=extra)
    with in_one_line(settings.title):
        own = _own_callbacks(settings)
    fresh = [path for path in (log_folder / settings.algo, log_folder) if not path.exists()]
    folder = create_folder(log_folder, settings)
    with locked(folder):
        try:
            write_settings(folder, settings)
            env = make_vec_env(settings, seed=settings.seed, folder=folder)
            with _closed_where_it_fails(env), in_one_line(settings.title):
                model: Any = build_model(settings, env)
                if start is not None:
                    start(model)
            if compiled:
                model.compile()
            evaluation = _evaluations(settings, model, folder)
        except UserError:
            shutil.rmtree(folder)
            with suppress(OSError):  # another run may have come into them
                for path in fresh:
                    path.rmdir()
            raise
        return _run(settings, folder, model, evaluation, own, console)


@contextmanager
def _closed_where_it_fails(env: VecEnv) -> Iterator[None]:
    """Close environments, and what they write to, where an agent cannot be built on them."""
    try:
        yield
    except UserError:
        env.close()
        raise


def _frequencies(total: int) -> dict[str, int]:
    """Return how many steps lie between evaluations, and between checkpoints, of a run of so many steps."""
    # Short runs would spend their time on evaluations.
    return {"eval_freq": min(max(total // 20, 1000), total), "save_freq": max(total // 5, 1)}


def _own_callbacks(settings: Settings) -> list[BaseCallback]:
    """Return the callbacks that a configuration names."""
    named = named_callables("callback", settings.hyperparameters.get("callback"))
    return [make(**keywords) for make, keywords in named]


def resume(
    folder: Path,
    n_timesteps: int | None = None,
    console: Console | None = None,
    trusted: Collection[str] | None = (),
    compiled: bool = False,
) -> dict[str, Any]:
    """Go on with a run from its last checkpoint, in its own folder, up to its number of steps or a new one.

    Args:
        folder: the run folder.
        n_timesteps: the new number of steps, which those between evaluations and checkpoints follow unless they were
            given.
        console: where progress is drawn, standard error by default.
        trusted: packages that dotted paths may lead into, as `read_settings` takes them.
        compiled: as for `train`.

    Raises:
        UserError: no run folder, no checkpoint, nothing left to do, or another process that trains in the folder.
    """
    folder, settings = Path(folder), read_settings(folder, trusted)
    with locked(folder):
        return _resumed(folder, settings, n_timesteps, console, compiled)


def _resumed(
    folder: Path, settings: Settings, n_timesteps: int | None, console: Console | None, compiled: bool
) -> dict[str, Any]:
    if n_timesteps is not None:
        changed = {**settings.hyperparameters, "n_timesteps": n_timesteps}
        before, now = _frequencies(settings.n_timesteps), _frequencies(n_timesteps)
        often = {name: now[name] for name, value in before.items() if settings.extra[name] == value}  # none were given
        extra = {**settings.extra, **often, "n_timesteps": n_timesteps}
        settings = replace(settings, hyperparameters=changed, extra=extra)
    done, total = checkpoint_steps(folder), settings.n_timesteps
    if done >= total:
        raise UserError(f"run {str(folder)!r} has done {done} of {total} steps: expected more, with -n above {done}")
    # The environments that write into the folder come last, so that a damaged file leaves it as it is.
    with in_one_line(settings.title):
        own, env = _own_callbacks(settings), make_vec_env(settings)
    with _closed_where_it_fails(env), in_one_line(settings.title):
        model: Any = build_model(settings, env)
    print_notes(load_checkpoint(model, folder))
    if compiled:
        model.compile()
    evaluation = _evaluations(settings, model, folder)
    write_settings(folder, settings)
    model.get_env().close()
    model.set_env(make_vec_env(settings, folder=folder))
    model.set_random_seed((settings.seed + done) % 2**32)  # or the same dice would fall again
    return _run(settings, folder, model, evaluation, own, console)


def _run(
    settings: Settings,
    folder: Path,
    model: Any,
    evaluation: EvalCallback,
    own: list[BaseCallback],
    console: Console | None,
) -> dict[str, Any]:
    """Let the model learn from where it is up to the end, and describe the agent that comes of it."""
    extra, total, done = settings.extra, settings.n_timesteps, model.num_timesteps
    path = folder / f"{zoo_name(settings.env_id)}.zip"
    model.set_logger(configure(str(folder), ["tensorboard"]))
    if done:
        _forget_later(model.logger, done)
    console = console or Console(stderr=True)
    console.print(
        f"{settings.algo} on {settings.env_id}: {settings.method}, {settings.symmetry.group}, {total:,} steps, "
        f"seed {settings.seed}; curves: {command_line('tensorboard', '--logdir', folder)}",
        **_AS_IT_IS,
    )
    progress = ProgressCallback(total, console)
    symmetry = SymmetryCallback(extra["eval_freq"], action_names(model.get_env()))
    callbacks: list[BaseCallback] = [
        HyperparametersCallback({**settings.hyperparameters, "env": settings.env_id, "seed": settings.seed}),
        evaluation,
        symmetry,
        CheckpointCallback(extra["save_freq"], folder),
        progress,
        *own,
    ]
    started = time.monotonic()
    try:
        model.learn(total - done, callback=callbacks, reset_num_timesteps=not done, log_interval=4)
        model.dump_logs()  # the episodes since the last fourth one
    except KeyboardInterrupt:
        progress.close()
        onwards = command_line("equirl", "train", "--resume", folder)
        console.print(f"interrupted: saving; go on with `{onwards}`", **_AS_IT_IS)
        save_checkpoint(model, folder)
        model.save(path)
        raise
    finally:
        progress.close()
        model.logger.close()
        model.get_env().close()
        evaluation.eval_env.close()
    seconds = time.monotonic() - started
    model.save(path)

    console.print(f"playing {FINAL_EPISODES} closing episodes", **_AS_IT_IS)
    with progress_bar(console) as told:
        final = evaluate(model, settings, episodes=FINAL_EPISODES, progress=told)
    return {
        "environment": settings.env_id,
        "algorithm": settings.algo,
        "method": settings.method,
        "symmetry": str(settings.symmetry.name or "given"),
        "group": str(settings.symmetry.group),
        "seed": settings.seed,
        "steps": int(model.num_timesteps),
        "seconds": round(seconds, 2),
        "steps_per_second": round((model.num_timesteps - done) / max(seconds, 1e-9), 1),
        "episodes": FINAL_EPISODES,
        "mean_return": final.mean,
        "std_return": final.std,
        "best_mean_return": finite(evaluation.best_mean_reward),
        "equivariance_error": finite(symmetry.last_error),
        "folder": str(folder),
        "model": str(path),
    }


def _evaluations(settings: Settings, model: Any, folder: Path) -> EvalCallback:
    """Return SB3's evaluation callback; it knows a resumed run's evaluations up to here, and the best mean of all."""
    episodes = settings.extra["eval_episodes"]
    # At least two where the run has several, or SB3 would warn that the two kinds of environments differ.
    n_envs = min(settings.n_envs, max(episodes, 2))
    env = make_vec_env(settings, n_envs=n_envs, seed=settings.seed + EVALUATION_SEED)
    evaluation = EvalCallback(
        model._wrap_env(env),  # as the model wraps its own, pictures with channels first, for the same reason
        n_eval_episodes=episodes,
        eval_freq=max(settings.extra["eval_freq"] // settings.n_envs, 1),
        log_path=str(folder),
        best_model_save_path=str(folder),
        deterministic=True,
        verbose=0,
        warn=False,
    )
    path = folder / "evaluations.npz"
    if not path.is_file():
        return evaluation
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            kept = stored["timesteps"] <= model.num_timesteps
            evaluation.evaluations_timesteps = stored["timesteps"][kept].tolist()
            evaluation.evaluations_results = stored["results"][kept].tolist()
            evaluation.evaluations_length = stored["ep_lengths"][kept].tolist()
            if "successes" in stored:
                evaluation.evaluations_successes = stored["successes"][kept].tolist()
            evaluation.best_mean_reward = float(stored["results"].mean(axis=1).max())
    except (OSError, EOFError, KeyError, IndexError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{str(path)!r}: expected the evaluations so far, or no file: {reason}") from None
    return evaluation


def _forget_later(logger: Logger, step: int) -> None:
    """Tell TensorBoard that the run went back to this step: what was logged after it and before a crash is void."""
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            writer: Any = output.writer.file_writer
            writer.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
