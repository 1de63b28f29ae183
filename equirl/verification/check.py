"""`check_symmetry`: is the symmetry that is claimed for an environment real, by the strongest evidence there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from equirl.errors import UserError
from equirl.symmetry import Symmetry, resolve_symmetry, symmetry_of
from equirl.verification.controls import wrong_claims
from equirl.verification.episodes import compare_episodes
from equirl.verification.guard import Guard
from equirl.verification.judging import RARE, judged, measured, numbers_of, worst_of
from equirl.verification.report import Report
from equirl.verification.simulators import Simulator, simulator_of
from equirl.verification.stepping import Policy, Stepper
from equirl.verification.tables import broken_pairs, table_of

Progress = Callable[[str, float], None]

STATES = 1000
"""States of play, and as many far from it, that are stepped where states can be set."""

CONTROLS = 6
"""Wrong claims that are checked beside the one in question."""

PAIRS = 128
"""Pairs of episodes where states cannot be set."""


def check_symmetry(
    env: gym.Env[Any, Any],
    symmetry: str | Mapping[str, Any] | None = None,
    *,
    states: int = STATES,
    policy: Policy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Return whether s' and r obey p(g s', r | g s, g a) = p(s', r | s, a) for every g, with the evidence.

    The strongest of four tiers is used: (1) states are set, moved and stepped, or a transition table is compared as a
    whole; (2) episodes from resets are compared under mirrored actions; (3) a model is fitted to transitions. Tier 0,
    spaces and bounds, is always checked. Wrong claims are checked beside the claim, as negative controls.

    Args:
        env: the environment with the wrappers that agents see it through.
        symmetry: a Symmetry, its data or a registered name; what the environment itself claims if not given.
        states: how many states of play to step, and as many far from it.
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
    return _Check(env, symmetry, states, policy, seed, progress or (lambda what, fraction: None)).report()


class _Check:
    def __init__(
        self,
        env: gym.Env[Any, Any],
        symmetry: str | Mapping[str, Any] | None,
        states: int,
        policy: Policy | None,
        seed: int,
        progress: Progress,
    ) -> None:
        self.env = Guard(env)
        claim = symmetry_of(env) if symmetry is None else resolve_symmetry(symmetry)
        if claim is None:
            raise UserError(f"no known symmetry of {self.env.name}: expected one to check")
        if states < 1:
            raise UserError(f"{states} states: expected at least 1")
        self.symmetry = claim.fitted(env.observation_space)
        self.symmetry.check_spaces(env.observation_space, env.action_space)
        self.states, self.policy, self.seed, self.progress = states, policy, seed, progress
        self.bounds = _unstable_bounds(self.symmetry, env.observation_space)
        self.interactions = 0

    def report(self) -> Report:
        table = table_of(self.env)
        if table is not None:
            return self._by_table(table)
        simulator = simulator_of(self.env)
        found = self._by_states(simulator) if simulator is not None else None
        return found or self._by_episodes()

    def _by_table(self, table: Any) -> Report:
        broken = broken_pairs(self.env, table, self.symmetry)
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
                "element": self.symmetry.group.names[g],
                "observation": s,
                "action": a,
                "error": distance,
            }
            for g, s, a, distance in sorted(rows, key=lambda row: -row[3])[:5]
        ]
        controls = []
        for name, claim in islice(self._wrong_claims(), CONTROLS):
            refuted = any(broken_pairs(self.env, table, claim))
            controls.append({"name": name, "verdict": "rejected" if refuted else "exact", "refuted": refuted})
        return self._report(verdict, 1, reason, {"pairs": total, "broken": len(rows)}, controls, worst)

    def _by_states(self, simulator: Simulator[Any]) -> Report | None:
        """Return the report of tier 1, or None where images of most states are unknown."""
        self.progress("playing", 0.0)
        stepper = Stepper(simulator, self.symmetry, self.seed)
        states = list(stepper.states(self.states, self.policy))
        random = stepper.is_random(states)
        self.progress("stepping both sides", 0.2)
        found = stepper.compare(states, random=random)
        self.interactions += stepper.interactions
        if found.missing > len(states) / 2 and not simulator.complete:
            return None
        errors = measured(found, simulator.precision)
        verdict, reason = judged(errors, random)
        if simulator.complete and found.missing > RARE * len(states):
            verdict, reason = (
                "rejected",
                f"no state shows the image of {found.missing:,} of {len(states):,} observations",
            )
        if found.unrepeatable:
            verdict = "undecidable"
            reason = f"{found.unrepeatable} steps differ under equal state, action and seed: the state hides something"
        if self.bounds and verdict == "locally broken":
            verdict, reason = "rejected", f"{reason}; {self.bounds}"
        controls = self._controls(simulator, states, random)
        numbers = {**numbers_of(errors), "random": random, "states_without_image": found.missing}
        if self.bounds:
            numbers["bounds"] = self.bounds
        worst = worst_of(errors, self.symmetry.group.names)
        return self._report(verdict, 1, reason, numbers, controls, worst)

    def _controls(self, simulator: Simulator[Any], states: list[tuple[str, Any]], random: bool) -> list[dict[str, Any]]:
        """Check wrong claims on a part of the same states."""
        part = states[:: max(1, len(states) // (60 if random else 200))]
        found = []
        for number, (name, claim) in enumerate(islice(self._wrong_claims(), CONTROLS)):
            self.progress("negative controls", 0.7 + 0.3 * number / CONTROLS)
            stepper = Stepper(simulator, claim, self.seed + number + 1)
            compared = stepper.compare(part, random=random)
            self.interactions += stepper.interactions
            errors = measured(compared, simulator.precision)
            verdict = "no state shows it" if compared.missing > len(part) / 2 else judged(errors, random)[0]
            refuted = verdict in ("rejected", "locally broken", "no state shows it")
            found.append({"name": name, "verdict": verdict, "refuted": refuted})
        return found

    def _by_episodes(self) -> Report:
        self.progress("episodes under mirrored actions", 0.0)
        test = compare_episodes(self.env, self.symmetry, PAIRS, self.seed)
        self.interactions += test.steps
        controls = []
        for number, (name, claim) in enumerate(islice(self._wrong_claims(), CONTROLS // 2)):
            self.progress("negative controls", (number + 1) / (CONTROLS // 2 + 1))
            control = compare_episodes(self.env, claim, PAIRS, self.seed + number + 1)
            self.interactions += control.steps
            verdict = "rejected" if control.p_value < 0.002 else "undecidable"
            controls.append(
                {"name": name, "verdict": verdict, "refuted": verdict == "rejected", "difference": control.difference}
            )
        numbers = {
            "pairs": test.pairs,
            "p_equal_resets": test.p_resets,
            "p_equal_laws": test.p_value,
            "difference": test.difference,
            "difference_at_most": test.bound,
        }
        return self._report(*self._judged_episodes(test, controls), numbers, controls, [])

    def _judged_episodes(self, test: Any, controls: list[dict[str, Any]]) -> tuple[str, int, str]:
        nearest = min((row["difference"] for row in controls), default=0.0)
        against = f"{test.pairs} pairs of episodes; wrong claims differ by {nearest:.2f} standard deviations or more"
        if test.p_resets < 0.002:
            return "undecidable", 2, f"the first observations are not symmetric (p = {test.p_resets:.4f}), {against}"
        if test.p_value >= 0.002:
            reason = (
                f"no difference found (p = {test.p_value:.2f}); means differ by at most {test.bound:.2f}, {against}"
            )
            return "approximate", 2, reason
        if test.difference <= 0.3 * nearest:
            return "approximate", 2, f"differs by {test.difference:.2f} standard deviations, {against}"
        return (
            "rejected",
            2,
            f"differs by {test.difference:.2f} standard deviations (p = {test.p_value:.4f}), {against}",
        )

    def _wrong_claims(self) -> Any:
        space = self.env.action_space
        actions = int(space.n) if isinstance(space, spaces.Discrete) else None
        for name, claim in wrong_claims(self.symmetry, np.random.default_rng(self.seed), actions):
            try:
                claim.check_spaces(self.env.observation_space, space)
            except UserError:
                continue
            yield name, claim

    def _report(
        self,
        verdict: str,
        tier: int,
        reason: str,
        numbers: dict[str, Any],
        controls: list[dict[str, Any]],
        worst: list[dict[str, Any]],
    ) -> Report:
        if controls and not any(row["refuted"] for row in controls) and verdict not in ("rejected", "undecidable"):
            verdict, reason = "undecidable", f"wrong claims pass as well ({reason})"
        passed = [row["name"] for row in controls if not row["refuted"]]
        if passed and verdict != "undecidable":
            numbers = {**numbers, "wrong_claims_that_pass": passed}
        self.progress("done", 1.0)
        return Report(
            self.env.name,
            self.symmetry,
            verdict,
            tier,
            reason,
            numbers,
            tuple(controls),
            tuple(worst),
            self.interactions,
        )


def _unstable_bounds(symmetry: Symmetry, space: gym.Space[Any]) -> str:
    """Return what is wrong where finite bounds of a Box of vectors are not mapped to bounds, else nothing."""
    if not isinstance(space, spaces.Box) or len(space.shape) > 2:
        return ""
    import torch

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
