"""Tier 2: episodes from resets, where states cannot be set."""

from __future__ import annotations

from itertools import islice
from typing import Any

from equirl.verification.episodes import EpisodeTest, compare_episodes
from equirl.verification.matched import compare_films
from equirl.verification.report import Report
from equirl.verification.task import Task

PAIRS = 128
"""Pairs of episodes where states cannot be set."""

DIFFERENT = 0.002
"""p-value below which laws of episodes count as different."""

UNSEEN = 0.05
"""Share of the entries that images change above which values never seen there make the images none."""

FILMS = 32
"""Pairs of episodes whose large pictures are compared."""

STATIC = 0.05
"""Share of the pixels that stand still that a symmetry may change."""


def by_episodes(task: Task) -> Report:
    """Return the report of tier 2 on vectors and small pictures."""
    task.progress("episodes under mirrored actions", 0.0)
    test = compare_episodes(task.env, task.symmetry, PAIRS, task.seed)
    task.interactions += test.steps
    controls = []
    count = -(-task.controls // 2) if test.p_resets >= DIFFERENT else 0
    for number, (name, claim) in enumerate(islice(task.wrong_claims(), count)):
        task.progress("negative controls", (number + 1) / (count + 1))
        control = compare_episodes(task.env, claim, PAIRS, task.seed + number + 1)
        task.interactions += control.steps
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
    return task.report(*_judged_episodes(test, controls), numbers, controls, [])


def _judged_episodes(test: EpisodeTest, controls: list[dict[str, Any]]) -> tuple[str, int, str]:
    if test.p_resets < DIFFERENT:
        if test.unseen > UNSEEN:
            reason = f"{test.unseen:.0%} of what images change lies outside all that was ever seen there"
            return "rejected", 2, reason
        return "undecidable", 2, f"the first observations are not symmetric (p = {test.p_resets:.4f})"
    nearest = min((row["difference"] for row in controls), default=0.0)
    against = f"{test.pairs} pairs of episodes; wrong claims differ by {nearest:.2f} standard deviations or more"
    if test.p_value >= DIFFERENT:
        reason = f"no difference found (p = {test.p_value:.2f}); means differ by at most {test.bound:.2f}, {against}"
        return "approximate", 2, reason
    if test.difference <= 0.3 * nearest:
        return "approximate", 2, f"differs by {test.difference:.2f} standard deviations, {against}"
    return (
        "rejected",
        2,
        f"differs by {test.difference:.2f} standard deviations (p = {test.p_value:.4f}), {against}",
    )


def by_films(task: Task) -> Report:
    """Return the report of tier 2 on large pictures."""
    test = compare_films(task.env, task.symmetry, FILMS, task.seed, task.progress)
    task.interactions += test.steps
    static = f"the background differs from its image in {test.background:.1%} of pixels"
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
    out = {name: test.stands_out(name) for name in test.resemblance}
    controls = [
        {"name": f"{name}, actions left unmoved", "verdict": "rejected" if far else "undecidable", "refuted": far}
        for name, far in out.items()
    ]
    return task.report(verdict, 2, reason, numbers, controls, [])
