"""`check_symmetry`: is the symmetry that is claimed for an environment real, by the strongest evidence there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from equirl.errors import UserError, check_seed
from equirl.symmetry import resolve_symmetry, symmetry_of
from equirl.verification.by_resets import by_episodes, by_films
from equirl.verification.by_states import by_states, by_table
from equirl.verification.guard import Guard
from equirl.verification.logged import check_log
from equirl.verification.matched import is_large_picture
from equirl.verification.report import Report
from equirl.verification.simulators import simulator_of
from equirl.verification.stepping import Policy
from equirl.verification.tables import table_of
from equirl.verification.task import Task
from equirl.verification.transitions import Progress, Transitions

STATES = 1000
"""States of play, and as many far from it, that are stepped where states can be set."""

CONTROLS = 6
"""Wrong claims that are checked beside the one in question."""

LOGGED = 12_000
"""Transitions to fit a model to, where neither states nor episodes decide."""


def check_symmetry(
    source: gym.Env[Any, Any] | Transitions,
    symmetry: str | Mapping[str, Any] | None = None,
    *,
    states: int = STATES,
    controls: int = CONTROLS,
    policy: Policy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Return whether s' and r obey p(g s', r | g s, g a) = p(s', r | s, a) for every g, with the evidence.

    The strongest of four tiers is used: (1) states are set, moved and stepped, or a transition table is compared as a
    whole; (2) episodes from resets are compared under mirrored actions; (3) a model is fitted to transitions. Tier 0,
    spaces and bounds, is always checked. Wrong claims are checked beside the claim, as negative controls.

    Args:
        source: the environment with the wrappers that agents see it through, or logged transitions alone.
        symmetry: a Symmetry, its data or a registered name; what the environment itself claims if not given.
        states: how many states of play to step, and as many far from it.
        controls: how many wrong claims to check beside the claim.
        policy: from observation to action, for states of play; random play without one.
        seed: of everything random.
        progress: told what is being done, and which fraction of it.

    Raises:
        UserError: no symmetry is known or given, it does not fit the spaces, or the environment fails.

    >>> print(check_symmetry(gym.make("CartPole-v1"), "CartPole-v1", states=200).verdict)
    exact
    >>> upright = {"generators": [[{"signs": [1, 1, -1, -1]}, [1, 0]]]}
    >>> print(check_symmetry(gym.make("CartPole-v1"), upright, states=200).verdict)
    rejected
    """
    told = progress or (lambda what, fraction: None)
    check_seed(seed)
    if isinstance(source, Transitions):
        if symmetry is None:
            raise UserError("no symmetry to check the transitions for: expected one, since a log claims none itself")
        return check_log(source, resolve_symmetry(symmetry), seed, told, "transitions")
    env = Guard(source)
    claim = symmetry_of(source) if symmetry is None else resolve_symmetry(symmetry)
    if claim is None:
        raise UserError(f"no known symmetry of {env.name}: expected one to check")
    if states < 1:
        raise UserError(f"{states} states: expected at least 1")
    fitted = claim.fitted(env.observation_space)
    fitted.check_spaces(env.observation_space, env.action_space)
    return _strongest(Task(env, fitted, states, controls, policy, seed, told))


def _strongest(task: Task) -> Report:
    """Return the report of the first tier that has an answer."""
    seen = task.symmetry.observation
    if all(seen.is_identity(g) for g in range(len(task.symmetry.group))):
        return task.report("exact", 0, "no element moves observations or actions", {}, [], [])
    table = table_of(task.env)
    if table is not None:
        return by_table(task, table)
    simulator = simulator_of(task.env)
    found = by_states(task, simulator) if simulator is not None else None
    if found is None:
        found = by_films(task) if is_large_picture(task.env.observation_space) else by_episodes(task)
    space = task.env.observation_space
    if found.verdict == "undecidable" and found.tier == 2 and isinstance(space, spaces.Box) and len(space.shape) == 1:
        return _by_log(task)
    return found


def _by_log(task: Task) -> Report:
    """Return the report of tier 3 on a log of random play; resets need not be symmetric for it."""
    log = Transitions.record(task.env, LOGGED, task.seed, task.policy, task.progress)
    taken = task.interactions + LOGGED
    return check_log(log, task.symmetry, task.seed, task.progress, task.env.name, taken)
