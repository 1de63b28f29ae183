"""One check in progress: what is checked, how hard, and how its report is put together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from equirl.symmetry import Symmetry
from equirl.verification.controls import claims_beside
from equirl.verification.guard import Guard
from equirl.verification.report import Report
from equirl.verification.stepping import Policy
from equirl.verification.transitions import Progress


@dataclass
class Task:
    """A claim about an environment, and how much to spend on it; counts the environment's steps."""

    env: Guard
    symmetry: Symmetry
    states: int
    controls: int
    policy: Policy | None
    seed: int
    progress: Progress
    interactions: int = 0
    note: str = ""  # why a stronger tier had no answer

    def wrong_claims(self) -> Iterator[tuple[str, Symmetry]]:
        """Yield claims that are wrong on purpose."""
        return claims_beside(self.symmetry, self.env.observation_space, self.env.action_space, self.seed)

    def report(
        self,
        verdict: str,
        tier: int,
        reason: str,
        numbers: dict[str, Any],
        controls: list[dict[str, Any]],
        worst: list[dict[str, Any]],
    ) -> Report:
        """Return the report; where wrong claims pass as well, nothing is decided."""
        if controls and not any(row["refuted"] for row in controls) and verdict not in ("rejected", "undecidable"):
            verdict, reason = "undecidable", f"wrong claims pass as well ({reason})"
        passed = [row["name"] for row in controls if not row["refuted"]]
        if passed and verdict != "undecidable":
            numbers = {**numbers, "wrong_claims_that_pass": passed}
        if self.note:
            reason = f"{reason}; {self.note}"
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
