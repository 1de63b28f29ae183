"""Tier 1: transition tables as a whole, or states that are set, moved and stepped."""

from __future__ import annotations

from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from equirl.symmetry import Symmetry
from equirl.verification.judging import RARE, judged, measured, numbers_of, worst_of
from equirl.verification.report import Report
from equirl.verification.simulators import Simulator
from equirl.verification.stepping import LAW_STATES, ON_POLICY, Stepper
from equirl.verification.tables import broken_pairs
from equirl.verification.task import Task

NEAR_STATES = 120
"""States of play, and as many far from it, that are stepped where images are merely near."""

NEAR, FAR = 0.6, 0.9
"""Error beside that of unmoved actions up to which a claim is approximate, and above which it is refuted."""


def by_table(task: Task, table: Any) -> Report:
    """Return the report on a transition table, every state and action of it."""
    broken = broken_pairs(task.env, table, task.symmetry)
    total = sum(len(table[s]) for s in range(len(table))) * (len(broken) - 1)
    rows = [(g, *row) for g, found in enumerate(broken) for row in found]
    random = any(len(outcomes) > 1 for s in range(len(table)) for outcomes in table[s].values())
    if not rows:
        verdict = "exact"
        reason = f"all {total:,} state-action pairs have the image's {'law' if random else 'outcome'}"
    else:
        verdict = "rejected"
        reason = f"{len(rows):,} of {total:,} state-action pairs break it"
    worst = [
        {
            "origin": "table",
            "element": task.symmetry.group.names[g],
            "observation": s,
            "action": a,
            "error": distance,
        }
        for g, s, a, distance in sorted(rows, key=lambda row: -row[3])[:5]
    ]
    controls = []
    for name, claim in islice(task.wrong_claims(), task.controls):
        refuted = any(broken_pairs(task.env, table, claim))
        controls.append({"name": name, "verdict": "rejected" if refuted else "exact", "refuted": refuted})
    return task.report(verdict, 1, reason, {"pairs": total, "broken": len(rows)}, controls, worst)


def by_states(task: Task, simulator: Simulator[Any]) -> Report | None:
    """Return the report of tier 1, or None where images of most states are unknown, or states hide something."""
    task.progress("playing", 0.0)
    stepper = Stepper(simulator, task.symmetry, task.seed)
    states = list(stepper.states(task.states, task.policy))
    random, unrepeatable = stepper.nature(states)
    if unrepeatable:
        task.interactions += stepper.interactions
        task.note = f"states hide something: {unrepeatable} steps differ though state, action and seed are equal"
        return None
    if random and not simulator.mirrors_noise:
        states = [*states[: min(task.states, LAW_STATES)], *states[task.states :][:LAW_STATES]]
    if simulator.approximate:
        return _beside_unmoved(task, stepper, states)
    task.progress("stepping both sides", 0.2)
    found = stepper.compare(states, random=random)
    task.interactions += stepper.interactions
    if found.missing > len(states) / 2 and not simulator.complete:
        return None
    errors = measured(found, simulator.precision)
    verdict, reason = judged(errors, random)
    bounds = unstable_bounds(task.symmetry, task.env.observation_space)
    if simulator.complete and found.missing > RARE * len(states):
        verdict, reason = (
            "rejected",
            f"no state shows the image of {found.missing:,} of {len(states):,} observations",
        )
    if bounds and verdict == "locally broken":
        verdict, reason = "rejected", f"{reason}; {bounds}"
    cost = _cost(task, stepper, states) if verdict == "approximate" else {}
    controls = _controls(task, simulator, states, random)
    numbers = {**cost, **numbers_of(errors), "random": random, "states_without_image": found.missing}
    if bounds:
        numbers["bounds"] = bounds
    worst = worst_of(errors, task.symmetry.group.names)
    return task.report(verdict, 1, reason, numbers, controls, worst)


def _beside_unmoved(task: Task, stepper: Stepper, states: list[tuple[str, Any]]) -> Report | None:
    """Return the report of tier 1 where images are near states: errors beside those of actions left unmoved."""
    part = [*states[: task.states][:NEAR_STATES], *states[task.states :][:NEAR_STATES]]
    task.progress("stepping both sides", 0.2)
    claimed = measured(stepper.compare(part), 1.0)
    task.progress("negative controls", 0.6)
    unmoved = measured(stepper.compare(part, lambda g, action: action), 1.0)
    task.interactions += stepper.interactions
    if len(claimed.rows) <= len(part) / 2:
        return None
    error, beside = float(claimed.error.mean()), float(unmoved.error.mean())
    ratio = error / max(beside, 1e-12)
    reason = f"steps differ by {error:.2f} of a typical change, {ratio:.2f} times as much as with unmoved actions"
    verdict = "approximate" if ratio <= NEAR else "rejected" if ratio > FAR else "undecidable"
    numbers = {**numbers_of(claimed), "unmoved_actions_error": beside, "ratio_to_unmoved_actions": ratio}
    stands_out = ratio <= NEAR
    said = "rejected" if stands_out else "undecidable"
    controls = [{"name": "actions left unmoved", "verdict": said, "refuted": stands_out}]
    worst = worst_of(claimed, task.symmetry.group.names)
    return task.report(verdict, 1, reason, numbers, controls, worst)


def _cost(task: Task, stepper: Stepper, states: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return what the difference may cost: how far discounted returns of mirrored play come apart."""
    task.progress("playing both sides", 0.6)
    before = stepper.interactions
    played = stepper.returns([state for state in states if state[0] == ON_POLICY][:: max(1, len(states) // 40)])
    task.interactions += stepper.interactions - before
    if not played:
        return {}
    left, right = np.array(played, dtype=np.float64).reshape(-1, 2).T
    gap, size = float(np.abs(left - right).mean()), float(np.abs(left).mean())
    return {"return_difference": gap, "cost_in_return": gap / max(size, 1e-12)}


def _controls(
    task: Task, simulator: Simulator[Any], states: list[tuple[str, Any]], random: bool
) -> list[dict[str, Any]]:
    """Check wrong claims on a part of the same states."""
    part = states[:: max(1, len(states) // (60 if random else 200))]
    found = []
    for number, (name, claim) in enumerate(islice(task.wrong_claims(), task.controls)):
        task.progress("negative controls", 0.7 + 0.3 * number / task.controls)
        stepper = Stepper(simulator, claim, task.seed + number + 1)
        compared = stepper.compare(part, random=random)
        task.interactions += stepper.interactions
        errors = measured(compared, simulator.precision)
        verdict = "no state shows it" if compared.missing > len(part) / 2 else judged(errors, random)[0]
        refuted = verdict in ("rejected", "locally broken", "no state shows it")
        seen = verdict if refuted else f"not seen to be wrong in {len(part)} states"
        found.append({"name": name, "verdict": seen, "refuted": refuted})
    return found


def unstable_bounds(symmetry: Symmetry, space: gym.Space[Any]) -> str:
    """Return what is wrong where finite bounds of a Box of vectors are not mapped to bounds, else nothing."""
    if not isinstance(space, spaces.Box) or len(space.shape) > 2:
        return ""
    box = torch.as_tensor(np.stack([space.low, space.high])).double()
    for g, name in enumerate(symmetry.group.names):
        moved = symmetry.observation(g, box)
        low, high = moved.amin(0), moved.amax(0)
        same = torch.isclose(low, box[0], rtol=1e-5, atol=1e-5) & torch.isclose(high, box[1], rtol=1e-5, atol=1e-5)
        if not same.all():
            i = int((~same).flatten().nonzero()[0])
            return (
                f"element {name} takes entry {i} from [{float(box[0].flatten()[i]):.4g}, "
                f"{float(box[1].flatten()[i]):.4g}] to [{float(low.flatten()[i]):.4g}, {float(high.flatten()[i]):.4g}]"
            )
    return ""
