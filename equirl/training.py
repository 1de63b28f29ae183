"""Train one agent: build, learn, evaluate, checkpoint, resume."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import configure

from equirl.callbacks import CheckpointCallback, HyperparametersCallback, ProgressCallback, SymmetryCallback
from equirl.checkpoints import checkpoint_steps, load_checkpoint
from equirl.errors import UserError
from equirl.evaluation import evaluate
from equirl.hyperparameters import named_callables
from equirl.runs import (
    EVALUATION_SEED,
    Settings,
    action_names,
    build_model,
    create_folder,
    make_vec_env,
    read_settings,
    write_settings,
    zoo_name,
)

FINAL_EPISODES = 20


def train(
    settings: Settings,
    log_folder: Path,
    eval_freq: int | None = None,
    eval_episodes: int = 5,
    save_freq: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train one agent into a new run folder, and return what came of it.

    Args:
        settings: the run, checked by `settings_of`.
        log_folder: the run goes to ``<log_folder>/<algo>/<env>_<k>`` with the next free k.
        eval_freq: environment steps between evaluations, a twentieth of the run by default.
        eval_episodes: episodes an evaluation.
        save_freq: environment steps between checkpoints, a fifth of the run by default.
        console: where progress is drawn.

    Returns:
        a JSON-able dictionary with `folder`, `mean_return`, `std_return`, `equivariance_error`, `seconds` and more.

    Raises:
        UserError: the log folder cannot be written.
    """
    total = settings.n_timesteps
    extra = {
        "n_timesteps": total,
        "eval_freq": eval_freq or max(total // 20, 1),
        "eval_episodes": eval_episodes,
        "save_freq": save_freq or max(total // 5, 1),
    }
    for name, value in extra.items():
        if value < 1:
            raise UserError(f"{name} {value}: expected a whole number of at least 1")
    settings = replace(settings, extra=extra)
    folder = create_folder(log_folder, settings)
    write_settings(folder, settings)
    return _run(settings, folder, resume=False, console=console)


def resume(folder: Path, n_timesteps: int | None = None, console: Console | None = None) -> dict[str, Any]:
    """Go on with a run from its last checkpoint, in its own folder, up to its number of steps or a new one.

    Raises:
        UserError: no run folder, no checkpoint, or nothing left to do.
    """
    settings = read_settings(folder)
    if n_timesteps is not None:
        changed = {**settings.hyperparameters, "n_timesteps": n_timesteps}
        settings = replace(settings, hyperparameters=changed, extra={**settings.extra, "n_timesteps": n_timesteps})
    return _run(settings, Path(folder), resume=True, console=console)


def _run(settings: Settings, folder: Path, resume: bool, console: Console | None) -> dict[str, Any]:
    name, extra, total = zoo_name(settings.env_id), settings.extra, settings.n_timesteps
    done = checkpoint_steps(folder) if resume else 0
    if done >= total:
        raise UserError(f"run {str(folder)!r} has done {done} of {total} steps: expected more, with -n above {done}")
    env = make_vec_env(settings, seed=settings.seed + done, folder=folder)
    model: Any = build_model(settings, env)
    if resume:
        load_checkpoint(model, folder)
        write_settings(folder, settings)
    # wrapped as the model wraps its own (pictures with channels first), or SB3 would warn that the two differ
    eval_envs = min(settings.n_envs, int(extra["eval_episodes"]))
    eval_env = model._wrap_env(make_vec_env(settings, n_envs=eval_envs, seed=settings.seed + EVALUATION_SEED))
    model.set_logger(configure(str(folder), ["tensorboard"]))

    progress = ProgressCallback(total, console)
    symmetry = SymmetryCallback(int(extra["eval_freq"]), action_names(env))
    evaluation = EvalCallback(
        eval_env,
        n_eval_episodes=int(extra["eval_episodes"]),
        eval_freq=max(int(extra["eval_freq"]) // settings.n_envs, 1),
        log_path=str(folder),
        best_model_save_path=str(folder),
        deterministic=True,
        verbose=0,
        warn=False,
    )
    if resume:
        _recall_evaluations(evaluation, folder)
    callbacks: list[BaseCallback] = [
        HyperparametersCallback({**settings.hyperparameters, "env": settings.env_id, "seed": settings.seed}),
        evaluation,
        symmetry,
        CheckpointCallback(int(extra["save_freq"]), folder),
        progress,
    ]
    callbacks += [
        make(**keywords) for make, keywords in named_callables("callback", settings.hyperparameters.get("callback"))
    ]
    started = time.monotonic()
    with _saving(model, folder / f"{name}.zip", progress):
        model.learn(total - done, callback=callbacks, reset_num_timesteps=not resume, log_interval=4)
    seconds = time.monotonic() - started
    env.close()
    eval_env.close()

    final = evaluate(model, settings, episodes=FINAL_EPISODES)
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
        "best_mean_return": _finite(evaluation.best_mean_reward),
        "equivariance_error": _finite(symmetry.last_error),
        "folder": str(folder),
        "model": str(folder / f"{name}.zip"),
    }


@contextmanager
def _saving(model: Any, path: Path, progress: ProgressCallback) -> Iterator[None]:
    """Save the agent when training ends, also when the user ends it with Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        progress.console.print("interrupted: saving the agent as it is; `equirl train --resume` goes on")
    finally:
        progress.close()
    model.save(path)


def _recall_evaluations(evaluation: EvalCallback, folder: Path) -> None:
    """Let a resumed run append to its earlier evaluations, and keep the best model unless it finds a better one."""
    path = folder / "evaluations.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            evaluation.evaluations_timesteps = stored["timesteps"].tolist()
            evaluation.evaluations_results = stored["results"].tolist()
            evaluation.evaluations_length = stored["ep_lengths"].tolist()
            if "successes" in stored:
                evaluation.evaluations_successes = stored["successes"].tolist()
        evaluation.best_mean_reward = float(np.mean(evaluation.evaluations_results, axis=1).max())


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
