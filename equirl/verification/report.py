"""What a check found: a verdict, the tier of evidence it rests on, the numbers, and the states that break it most."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from equirl.symmetry import Symmetry

VERDICTS = ("exact", "exact in law", "approximate", "locally broken", "rejected", "undecidable")

TIERS = ("static", "states", "resets", "transitions")
"""By number: 0 spaces alone, 1 states that were set and stepped, 2 episodes from resets, 3 logged transitions."""


@dataclass(frozen=True)
class Report:
    """The answer of a check.

    Args:
        environment: what was checked.
        symmetry: the claim, fitted to the environment's observations.
        verdict: one of `VERDICTS`.
        tier: the strongest evidence there was, an index into `TIERS`.
        reason: one sentence that says why.
        numbers: what was measured, name by name.
        controls: claims that are wrong on purpose, each with its name and whether it was refuted.
        worst: the states that break the claim most, worst first.
        interactions: environment steps taken.
    """

    environment: str
    symmetry: Symmetry
    verdict: str
    tier: int
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)
    controls: tuple[dict[str, Any], ...] = ()
    worst: tuple[dict[str, Any], ...] = ()
    interactions: int = 0

    @property
    def holds(self) -> bool:
        """Whether the symmetry may be used: exact, exact in law or approximate."""
        return self.verdict in VERDICTS[:3]

    @property
    def error(self) -> float:
        """How far the claim is off: in 99% of steps at most so many typical changes a step, where states were stepped.

        Of a table the share of pairs that break it; of large pictures the share of the background that changes; of
        episodes the largest mean difference in standard deviations; of
        a log how much worse images of transitions fit.
        """
        if "pairs" in self.numbers and "broken" in self.numbers:
            return float(self.numbers["broken"] / max(self.numbers["pairs"], 1))
        if "error" in self.numbers:
            return float(self.numbers["error"]["p99"])
        if "background" in self.numbers:
            return float(self.numbers["background"])
        if "difference" in self.numbers:
            return float(self.numbers["difference"])
        return max(self.numbers.get("ratio", {}).values(), default=1.0) - 1.0

    def to_data(self) -> dict[str, Any]:
        """Return the report as plain JSON data."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**data, "group": str(self.symmetry.group), "holds": self.holds, "tier_name": TIERS[self.tier]}

    def __str__(self) -> str:
        return f"{self.environment}: {self.verdict} (tier {self.tier}, {TIERS[self.tier]}): {self.reason}"
