"""Tier 3 as a report: what logged transitions alone say about a claim, beside wrong claims."""

from __future__ import annotations

from itertools import islice
from typing import Any

from equirl.symmetry import Symmetry
from equirl.verification.controls import claims_beside, plain_map
from equirl.verification.logs import REFUTED, LogCheck, check_transitions
from equirl.verification.pictures import discover_pictures
from equirl.verification.report import Report
from equirl.verification.transitions import Progress, Transitions

CONTROLS = 4
"""Wrong claims that are tried on the log."""

DOUBTFUL = 1.05
"""Rise of the residual, when images are learned from too, from which a claim is in doubt; rare ends rise by less."""

COVERED = 0.1
"""Share of the images that must lie where the log has been."""


def check_log(
    transitions: Transitions, symmetry: Symmetry, seed: int, progress: Progress, name: str, interactions: int = 0
) -> Report:
    """Return what logged transitions say about a claim.

    A model of the log says how far the images of transitions are from being transitions too. It can refute a claim; it
    confirms one only up to the model's resolution, so the best verdict is "approximate".

    Args:
        transitions: the log; observations are vectors or small pictures.
        symmetry: the claim.
        seed: of the split into halves and of the model.
        progress: told what is being done, and which fraction of it.
        name: of the environment.
        interactions: steps that recording the log took.
    """
    claim = symmetry.fitted(transitions.observation_space)
    claim.check_spaces(transitions.observation_space, transitions.action_space)
    if len(transitions.observation_space.shape or ()) == 3:
        return _check_pictures(transitions, claim, seed, progress, name, interactions)
    progress("fitting a model to transitions", 0.0)
    found = check_transitions(transitions, claim, seed)
    controls = []
    beside = islice(claims_beside(claim, transitions.observation_space, transitions.action_space, seed), CONTROLS)
    for number, (control, wrong) in enumerate(beside):
        progress("negative controls", (number + 1) / (CONTROLS + 1))
        tried = check_transitions(transitions, wrong, seed)
        verdict = "rejected" if tried.refuted else "approximate" if tried.agrees else "undecidable"
        controls.append({"name": control, "verdict": verdict, "refuted": tried.refuted, "ratio": tried.ratio})
    progress("done", 1.0)
    verdict, reason = _judged(found)
    if verdict == "approximate" and not any(row["refuted"] for row in controls):
        verdict, reason = "undecidable", f"wrong claims pass as well ({reason})"
    return Report(name, claim, verdict, 3, reason, _numbers(found), tuple(controls), (), interactions)


def _check_pictures(
    transitions: Transitions, claim: Symmetry, seed: int, progress: Progress, name: str, interactions: int
) -> Report:
    """Return what a log of small pictures says, by the laws of their patches: the claim's elements among all maps."""
    found = discover_pictures(transitions, seed=seed, progress=progress)
    scored = {_turned(candidate.observation_map): candidate for candidate in (*found.refused[::-1], *found.accepted)}
    accepted = {_turned(candidate.observation_map) for candidate in found.accepted}
    verdict, reason = "approximate", "every element is among those that the log's patches obey"
    scores = {}
    for g, element in enumerate(claim.group.names[1:], 1):
        seen = plain_map(claim.observation, g)
        done = plain_map(claim.action, g, getattr(transitions.action_space, "n", None))
        candidate = scored.get(_turned(seen))
        if candidate is None or seen.get("fixed") or seen.get("shift"):
            limits = found.note or "such maps are not compared"
            verdict, reason = "undecidable", f"element {element}: {limits}"
            break
        scores[element] = candidate.score
        if _turned(seen) not in accepted:
            verdict, reason = "rejected", f"element {element} is refused: {candidate.note}"
            break
        if list(candidate.action_map) != done["permutation"]:
            verdict = "rejected"
            reason = f"element {element} moves actions by {done['permutation']}, the log by {candidate.action_map}"
            break
    progress("done", 1.0)
    return Report(name, claim, verdict, 3, reason, {"scores": scores, "rows": len(transitions)}, (), (), interactions)


def _turned(plain: Any) -> tuple[str, tuple[int, ...]]:
    """Return a picture map's name and channels, none where each stays."""
    plain = {"grid": plain} if isinstance(plain, str) else plain
    channels = tuple(plain.get("channels", ()))
    return plain["grid"], () if channels == tuple(range(len(channels))) else channels


def _judged(found: LogCheck) -> tuple[str, str]:
    worst = found.worst
    low, high = worst.interval
    rises = [comparison.contradiction for comparison in found.elements.values()]
    rise = max((value for value in rises if value is not None), default=1.0)
    fits = f"images of transitions fit {worst.ratio:.2f} times as badly as the transitions themselves ({worst.worst}"
    fits += f", 95% interval {low:.2f} to {high:.2f}, {found.rows:,} rows)"
    if None in rises:
        return "rejected", fits
    if rise > REFUTED:
        return "rejected", f"a model that learns from images too fits {rise:.2f} times as badly; {fits}"
    if rise > DOUBTFUL:
        return "undecidable", f"a model that learns from images too fits {rise:.2f} times as badly; {fits}"
    if worst.ratio <= REFUTED and found.coverage >= COVERED:
        return "approximate", f"{fits}; the log would show a ratio of {REFUTED}"
    if found.coverage < COVERED:
        return "undecidable", f"only {found.coverage:.0%} of the images lie where the log has been; {fits}"
    return "undecidable", fits


def _numbers(found: LogCheck) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "blocks": found.blocks,
        "ratio": {name: comparison.ratio for name, comparison in found.elements.items()},
        "interval": {name: list(comparison.interval) for name, comparison in found.elements.items()},
        "coverage": found.coverage,
        "resolution": found.resolution,
    }
