"""What becomes of a trained agent: another method or symmetry around its networks, written anew or trained further."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from equirl.agents.wrapping import OURS, check_weights, copy_parameters, symmetrize_model
from equirl.errors import UserError
from equirl.evaluation import finite, observations
from equirl.folders import write_settings, zoo_name
from equirl.hyperparameters import keyword_arguments
from equirl.loading import Found, agent_of, fit, fresh_model
from equirl.methods import NATIVE
from equirl.runs import Settings, prepared
from equirl.symmetrizers import Identity

_COUNTERS = {"num_timesteps": int, "_n_updates": int, "_episode_num": int, "exploration_rate": float}


def with_overrides(found: Found, overrides: Mapping[str, Any], seed: int | None = None) -> Settings:
    """Return an agent's settings with other hyper-parameters, `symmetry` and `method` among them, checked as a whole.

    Raises:
        UserError: at the first mistake; a method that needs a symmetry where none is known.
    """
    settings = found.settings
    hyperparameters = {**settings.hyperparameters, **overrides}
    method = hyperparameters["method"]
    check_weights(settings.method, method)
    if method != Identity.method and overrides.get("symmetry") == "none":
        raise UserError(f"symmetry 'none' with method {method!r}: expected a symmetry's name, or method 'identity'")
    if method != settings.method:
        kwargs = keyword_arguments(hyperparameters.get("policy_kwargs")) or {}
        hyperparameters["policy_kwargs"] = {key: value for key, value in kwargs.items() if key not in OURS}
    if method != Identity.method and hyperparameters["symmetry"] == "none":
        hyperparameters["symmetry"] = "auto"
    seed = settings.seed if seed is None else seed
    chosen = prepared(replace(settings, hyperparameters=hyperparameters, seed=seed, extra={}))
    if method == NATIVE and chosen.symmetry != settings.symmetry:
        raise UserError(
            f"symmetry {chosen.symmetry.name!r} for a native agent: expected {settings.symmetry.name!r}, for which its "
            "weights are"
        )
    return chosen


def start_from(found: Found, settings: Settings) -> Callable[[Any], None]:
    """Return what gives a fresh model of these settings the weights and the optimizers' states of a trained agent.

    Files that are trusted also give their replay buffer.

    Raises:
        UserError: files that cannot be read, or weights that no model of these settings can take.
    """
    agent = agent_of(found, optimizers=True)
    fit(agent, fresh_model(settings), found.weights)
    buffer = _replay_buffer(found, settings, agent)

    def start(model: Any) -> None:
        copy_parameters(agent, model)
        if buffer is not None:
            model.replay_buffer = buffer

    return start


def _replay_buffer(found: Found, settings: Settings, agent: Any) -> Any:
    """Return the replay buffer that lies unpickled beside a trusted agent, None where there is none."""
    path = None if found.folder is None else found.folder / "replay_buffer.pkl"
    own = getattr(agent, "replay_buffer", None)
    if not found.trust or own is None or path is None or not path.is_file():
        return None
    try:
        agent.load_replay_buffer(path)
        spaces = agent.replay_buffer.observation_space, agent.replay_buffer.action_space
    except Exception as error:  # a pickle can raise anything
        raise UserError(f"{str(path)!r} cannot be unpickled: {' '.join(str(error).split())[:200]}") from None
    if spaces != (agent.observation_space, agent.action_space) or agent.replay_buffer.n_envs != settings.n_envs:
        raise UserError(f"{str(path)!r}: expected experience of {settings.env_id}, {settings.n_envs} at once")
    return agent.replay_buffer


def wrap(found: Found, symmetry: str | Mapping[str, Any] | None, method: str, output: Path) -> dict[str, Any]:
    """Write a trained agent made equivariant, without retraining, as a zip of SB3 or as a run folder.

    Weights, optimizers' states and counters are the old agent's; learning rate, schedules and replay settings are what
    its files say, so that it can go on training.

    Args:
        found: the agent, as `find_agent` returns it.
        symmetry: a registered name, plain data, or None for the agent's own or the catalogue's.
        method: one of `equirl.METHODS`.
        output: a path that is free: a zip, where it ends in .zip, else a run folder.

    Returns:
        a JSON-able dictionary with `model`, `equivariance_error`, `greedy_disagreement` of the plain network, and more.

    Raises:
        UserError: a path that is taken or cannot be written, or an agent that cannot be made equivariant.
    """
    output = Path(output)
    try:
        output.lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(f"{str(output)!r}: expected a path that can be written: {reason}") from None
    else:
        raise UserError(f"{str(output)!r} exists: expected a path that is free")
    settings = with_overrides(found, {"method": method} | ({} if symmetry is None else {"symmetry": symmetry}))
    agent = agent_of(found, optimizers=True)
    for name, kind in _COUNTERS.items():
        if hasattr(agent, name) and type(found.archive.data.get(name)) is kind:
            setattr(agent, name, found.archive.data[name])
    model = symmetrize_model(agent, settings.hyperparameters["symmetry"], method, **_options(settings))
    model.policy.set_training_mode(False)
    seen = model.policy.obs_to_tensor(observations(model, settings))[0]
    _write(model, settings, output)
    return {
        "model": str(output),
        "environment": settings.env_id,
        "algorithm": settings.algo,
        "method": method,
        "symmetry": settings.symmetry.name,
        "group": str(settings.symmetry.group),
        "equivariance_error": finite(model.policy.equivariance_error(seen)),
        "plain_greedy_disagreement": model.policy.greedy_disagreement(seen, plain=True),
        "steps": int(model.num_timesteps),
    }


def _options(settings: Settings) -> dict[str, Any]:
    """Return the method's further arguments."""
    kwargs = keyword_arguments(settings.hyperparameters.get("policy_kwargs")) or {}
    return dict(kwargs.get("symmetrizer_kwargs") or {})


def _write(model: Any, settings: Settings, output: Path) -> None:
    """Write beside the place first, then move: a path holds a whole agent or nothing."""
    env = zoo_name(settings.env_id)
    model.equirl_settings = {"env": settings.env_id, **settings.hyperparameters}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=output.parent))
    except OSError as error:
        raise UserError(f"{str(output)!r}: expected a path that can be written: {error.strerror}") from None
    try:
        model.save(partial / f"{env}.zip")
        if output.suffix == ".zip":
            os.replace(partial / f"{env}.zip", output)
            return
        (partial / env).mkdir()
        total = settings.n_timesteps
        extra = {"n_timesteps": total, "eval_freq": max(total // 20, 1), "eval_episodes": 5}
        write_settings(partial, replace(settings, extra={**extra, "save_freq": max(total // 5, 1)}))
        partial.chmod(0o755)  # temporary folders are their owner's alone
        os.replace(partial, output)
    except OSError as error:
        raise UserError(f"{str(output)!r}: expected a path that can be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
