"""`check_symmetry`: is the symmetry that is claimed for an environment real, by the strongest evidence there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from equirl.errors import UserError
from equirl.symmetry import Symmetry, resolve_symmetry, symmetry_of
from equirl.verification.controls import claims_beside
from equirl.verification.episodes import compare_episodes
from equirl.verification.guard import Guard
from equirl.verification.judging import RARE, judged, measured, numbers_of, worst_of
from equirl.verification.logged import check_log
from equirl.verification.matched import compare_films, is_large_picture
from equirl.verification.report import Report
from equirl.verification.simulators import Simulator, simulator_of
from equirl.verification.stepping import LAW_STATES, ON_POLICY, Policy, Stepper
from equirl.verification.tables import broken_pairs, table_of
from equirl.verification.transitions import Progress, Transitions

STATES = 1000
"""States of play, and as many far from it, that are stepped where states can be set."""

CONTROLS = 6
"""Wrong claims that are checked beside the one in question."""

PAIRS = 128
"""Pairs of episodes where states cannot be set."""

DIFFERENT = 0.002
"""p-value below which laws of episodes count as different."""

UNSEEN = 0.05
"""Share of the entries that images change above which values never seen there make the images none."""

NEAR_STATES = 120
"""States of play, and as many far from it, that are stepped where images are merely near."""

NEAR, FAR = 0.6, 0.9
"""Error beside that of unmoved actions up to which a claim is approximate, and above which it is refuted."""

FILMS = 32
"""Pairs of episodes whose large pictures are compared."""

STATIC = 0.05
"""Share of the median picture's pixels that a symmetry may change."""

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
    if isinstance(source, Transitions):
        if symmetry is None:
            raise UserError("no symmetry to check the transitions for: expected one, since a log claims none itself")
        return check_log(source, resolve_symmetry(symmetry), seed, told, "transitions")
    return _Check(source, symmetry, states, controls, policy, seed, told).report()


class _Check:
    def __init__(
        self,
        env: gym.Env[Any, Any],
        symmetry: str | Mapping[str, Any] | None,
        states: int,
        controls: int,
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
        self.control_count = controls
        self.bounds = _unstable_bounds(self.symmetry, env.observation_space)
        self.interactions = 0

    def report(self) -> Report:
        if all(self.symmetry.observation.is_identity(g) for g in range(len(self.symmetry.group))):
            return self._report(
                "exact", 0, "no element moves observations or actions: there is nothing to check", {}, [], []
            )
        table = table_of(self.env)
        if table is not None:
            return self._by_table(table)
        simulator = simulator_of(self.env)
        found = self._by_states(simulator) if simulator is not None else None
        if found is None:
            found = self._by_films() if is_large_picture(self.env.observation_space) else self._by_episodes()
        return self._by_log() if found.verdict == "undecidable" and found.tier == 2 and self._are_vectors() else found

    def _are_vectors(self) -> bool:
        space = self.env.observation_space
        return isinstance(space, spaces.Box) and len(space.shape) == 1

    def _by_log(self) -> Report:
        """Return the report of tier 3, on a log of random play; resets need not be symmetric for it."""
        log = Transitions.record(self.env, LOGGED, self.seed, self.policy, self.progress)
        taken = self.interactions + LOGGED
        return check_log(log, self.symmetry, self.seed, self.progress, self.env.name, taken)

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
        for name, claim in islice(self._wrong_claims(), self.control_count):
            refuted = any(broken_pairs(self.env, table, claim))
            controls.append({"name": name, "verdict": "rejected" if refuted else "exact", "refuted": refuted})
        return self._report(verdict, 1, reason, {"pairs": total, "broken": len(rows)}, controls, worst)

    def _by_states(self, simulator: Simulator[Any]) -> Report | None:
        """Return the report of tier 1, or None where images of most states are unknown."""
        self.progress("playing", 0.0)
        stepper = Stepper(simulator, self.symmetry, self.seed)
        states = list(stepper.states(self.states, self.policy))
        random, unrepeatable = stepper.nature(states)
        if unrepeatable:
            self.interactions += stepper.interactions
            reason = f"{unrepeatable} steps differ though state, action and seed are equal: the state hides something"
            return self._report("undecidable", 1, reason, {"unrepeatable": unrepeatable}, [], [])
        if random and not simulator.mirrors_noise:
            states = [*states[: min(self.states, LAW_STATES)], *states[self.states :][:LAW_STATES]]
        if simulator.approximate:
            return self._beside_unmoved(stepper, states)
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
        if self.bounds and verdict == "locally broken":
            verdict, reason = "rejected", f"{reason}; {self.bounds}"
        cost = self._cost(stepper, states) if verdict == "approximate" else {}
        controls = self._controls(simulator, states, random)
        numbers = {**cost, **numbers_of(errors), "random": random, "states_without_image": found.missing}
        if self.bounds:
            numbers["bounds"] = self.bounds
        worst = worst_of(errors, self.symmetry.group.names)
        return self._report(verdict, 1, reason, numbers, controls, worst)

    def _beside_unmoved(self, stepper: Stepper, states: list[tuple[str, Any]]) -> Report | None:
        """Return the report of tier 1 where images are near states: errors beside those of actions left unmoved."""
        part = [*states[: self.states][:NEAR_STATES], *states[self.states :][:NEAR_STATES]]
        self.progress("stepping both sides", 0.2)
        claimed = measured(stepper.compare(part), 1.0)
        self.progress("negative controls", 0.6)
        unmoved = measured(stepper.compare(part, lambda g, action: action), 1.0)
        self.interactions += stepper.interactions
        if len(claimed.rows) <= len(part) / 2:
            return None
        error, beside = float(claimed.error.mean()), float(unmoved.error.mean())
        ratio = error / max(beside, 1e-12)
        reason = f"steps differ by {error:.2f} of a typical change, {ratio:.2f} times as much as with unmoved actions"
        verdict = "approximate" if ratio <= NEAR else "rejected" if ratio > FAR else "undecidable"
        numbers = {**numbers_of(claimed), "unmoved_actions_error": beside, "ratio_to_unmoved_actions": ratio}
        controls = [{"name": "actions left unmoved", "verdict": "rejected", "refuted": ratio <= NEAR}]
        worst = worst_of(claimed, self.symmetry.group.names)
        return self._report(verdict, 1, reason, numbers, controls, worst)

    def _cost(self, stepper: Stepper, states: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return what the difference may cost: how far discounted returns of mirrored play come apart."""
        self.progress("playing both sides", 0.6)
        before = stepper.interactions
        played = stepper.returns([state for state in states if state[0] == ON_POLICY][:: max(1, len(states) // 40)])
        self.interactions += stepper.interactions - before
        left, right = np.array(played, dtype=np.float64).reshape(-1, 2).T
        gap, size = float(np.abs(left - right).mean()), float(np.abs(left).mean())
        return {"return_difference": gap, "cost_in_return": gap / max(size, 1e-12)}

    def _controls(self, simulator: Simulator[Any], states: list[tuple[str, Any]], random: bool) -> list[dict[str, Any]]:
        """Check wrong claims on a part of the same states."""
        part = states[:: max(1, len(states) // (60 if random else 200))]
        found = []
        for number, (name, claim) in enumerate(islice(self._wrong_claims(), self.control_count)):
            self.progress("negative controls", 0.7 + 0.3 * number / self.control_count)
            stepper = Stepper(simulator, claim, self.seed + number + 1)
            compared = stepper.compare(part, random=random)
            self.interactions += stepper.interactions
            errors = measured(compared, simulator.precision)
            verdict = "no state shows it" if compared.missing > len(part) / 2 else judged(errors, random)[0]
            refuted = verdict in ("rejected", "locally broken", "no state shows it")
            found.append({"name": name, "verdict": verdict, "refuted": refuted})
        return found

    def _by_films(self) -> Report:
        """Return the report of tier 2 on large pictures."""
        test = compare_films(self.env, self.symmetry, FILMS, self.seed, self.progress)
        self.interactions += test.steps
        static = f"the median picture differs from its image in {test.background:.1%} of pixels"
        if test.background > STATIC:
            verdict, reason = "rejected", static
        elif test.confirms:
            least = min(test.resemblance.values())
            verdict, reason = "approximate", f"films under mirrored actions are mirrored (T = {least:.2f}); {static}"
        else:
            verdict, reason = "undecidable", f"{static}, but films under mirrored actions do not tell"
        numbers = {
            "pairs": test.pairs,
            "background": test.background,
            "resemblance": test.resemblance,
            "resemblance_with_unmoved_actions": test.unmoved,
            "p_no_resemblance": test.p_values,
        }
        controls = [
            {"name": f"{name}, actions left unmoved", "verdict": "rejected", "refuted": found >= 2 * test.unmoved[name]}
            for name, found in test.resemblance.items()
        ]
        return self._report(verdict, 2, reason, numbers, controls, [])

    def _by_episodes(self) -> Report:
        self.progress("episodes under mirrored actions", 0.0)
        test = compare_episodes(self.env, self.symmetry, PAIRS, self.seed)
        self.interactions += test.steps
        controls = []
        count = -(-self.control_count // 2) if test.p_resets >= DIFFERENT else 0
        for number, (name, claim) in enumerate(islice(self._wrong_claims(), count)):
            self.progress("negative controls", (number + 1) / (count + 1))
            control = compare_episodes(self.env, claim, PAIRS, self.seed + number + 1)
            self.interactions += control.steps
            verdict = "rejected" if control.p_value < DIFFERENT else "undecidable"
            controls.append(
                {"name": name, "verdict": verdict, "refuted": verdict == "rejected", "difference": control.difference}
            )
        numbers = {
            "pairs": test.pairs,
            "p_equal_resets": test.p_resets,
            "p_equal_laws": test.p_value,
            "difference": test.difference,
            "difference_at_most": test.bound,
            "images_unseen": test.unseen,
        }
        return self._report(*self._judged_episodes(test, controls), numbers, controls, [])

    def _judged_episodes(self, test: Any, controls: list[dict[str, Any]]) -> tuple[str, int, str]:
        if test.p_resets < DIFFERENT:
            if test.unseen > UNSEEN:
                reason = f"{test.unseen:.0%} of what images change lies outside all that was ever seen there"
                return "rejected", 2, reason
            return "undecidable", 2, f"the first observations are not symmetric (p = {test.p_resets:.4f})"
        nearest = min((row["difference"] for row in controls), default=0.0)
        against = f"{test.pairs} pairs of episodes; wrong claims differ by {nearest:.2f} standard deviations or more"
        if test.p_value >= DIFFERENT:
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

    def _wrong_claims(self) -> Iterator[tuple[str, Symmetry]]:
        return claims_beside(self.symmetry, self.env.observation_space, self.env.action_space, self.seed)

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
