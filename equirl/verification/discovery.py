"""Finding the symmetries of an environment or of a log: search in random play, then confirm by stepping states."""

from __future__ import annotations

import json
import pprint
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from equirl.errors import UserError, check_seed
from equirl.symmetry import Symmetry
from equirl.verification.candidates import Candidate, Shortlist, closed, generating
from equirl.verification.guard import name_of
from equirl.verification.report import Report
from equirl.verification.transitions import Progress, Transitions


@dataclass(frozen=True)
class Discovery:
    """What a search for symmetries found.

    Args:
        environment: where it was looked for.
        symmetry: the largest group that was found, None where there is none.
        elements: every element of it but the identity, with its score.
        refused: the next best candidates, best first, with their scores and why they were refused.
        interactions: environment steps taken, those of the confirming checks included.
        report: the check that confirmed the group as a whole, None where it was not asked for or nothing was found.
        note: what limits the answer, or why nothing was found; empty else.
        examined: how many maps were scored.
    """

    environment: str
    symmetry: Symmetry | None
    elements: tuple[Candidate, ...] = ()
    refused: tuple[Candidate, ...] = ()
    interactions: int = 0
    report: Report | None = None
    note: str = ""
    examined: int = 0
    generators: tuple[Candidate, ...] = field(default=())

    @property
    def score(self) -> float | None:
        """Score of the worst element, None where nothing was found."""
        return max((candidate.score for candidate in self.elements), default=None)

    @property
    def next_best(self) -> float | None:
        """Score of the best candidate that was refused: the margin to `score` tells how clear the answer is."""
        return min((candidate.score for candidate in self.refused), default=None)

    def code(self) -> str:
        """Return the symmetry as Python that can be pasted into a script, its generators few.

        >>> Discovery("MyEnv-v0", None).code()
        '# no symmetry of MyEnv-v0 was found'
        """
        if self.symmetry is None:
            return f"# no symmetry of {self.environment} was found"
        lines = ["from equirl import Symmetry", "", "symmetry = Symmetry.generated_by("]
        for generator in self.generators:
            pair = pprint.pformat((generator.observation_map, generator.action_map), width=110, sort_dicts=False)
            lines += [f"    {line}" for line in f"{pair},".replace("'", '"').splitlines()]
        return "\n".join([*lines, f"    name={json.dumps(self.environment)},", ")"])

    def to_data(self) -> dict[str, Any]:
        """Return what was found as plain JSON data."""

        def rows(candidates: tuple[Candidate, ...]) -> list[dict[str, Any]]:
            return [
                {"observation": c.observation_map, "action": c.action_map, "score": c.score, "note": c.note}
                for c in candidates
            ]

        return {
            "environment": self.environment,
            "symmetry": dict(self.symmetry) if self.symmetry is not None else None,
            "group": str(self.symmetry.group) if self.symmetry is not None else None,
            "generators": [[c.observation_map, c.action_map] for c in self.generators],
            "elements": rows(self.elements),
            "refused": rows(self.refused),
            "score": self.score,
            "next_best": self.next_best,
            "interactions": self.interactions,
            "examined": self.examined,
            "report": self.report.to_data() if self.report is not None else None,
            "note": self.note,
            "code": self.code(),
        }


def discover_symmetries(
    source: gym.Env[Any, Any] | Transitions,
    *,
    interactions: int = 20_000,
    seed: int = 0,
    confirm: bool = True,
    progress: Progress | None = None,
) -> Discovery:
    """Return the symmetries of an environment, found in random play and confirmed by stepping states.

    Of vectors, the signed permutations of entries about a centre together with (signed) permutations of actions; of
    pictures, turns and mirrors with permutations of channels and actions.

    Args:
        source: an environment with the wrappers that agents see it through, or logged transitions.
        interactions: how many steps to record; the confirming check takes more.
        seed: of everything random.
        confirm: whether what is found is confirmed by `check_symmetry`; a log alone never is.
        progress: told what is being done, and which fraction of it.

    Raises:
        UserError: spaces of other kinds, too few transitions, or an environment that fails.

    >>> found = discover_symmetries(gym.make("CartPole-v1"), interactions=3000, confirm=False)
    >>> found.symmetry.group, found.elements[0].observation_map, found.elements[0].action_map
    (C2, {'signs': [-1, -1, -1, -1]}, [1, 0])
    """
    check_seed(seed)
    if isinstance(source, Transitions):
        return _discovery("transitions", search(source, seed, progress), 0, ())
    name = name_of(source)
    supported(source.observation_space, source.action_space)
    if interactions < 1:
        raise UserError(f"interactions {interactions}: expected a positive number")
    if len(source.observation_space.shape or ()) > 1:
        from equirl.verification.pixels import unfit

        glimpse = Transitions.record(source, min(interactions, 100), seed)
        reason = unfit(glimpse)
        if reason:  # before minutes of play
            return _discovery(name, Shortlist((), note=reason), len(glimpse), ())
    found = search(Transitions.record(source, interactions, seed, progress=progress), seed, progress)
    if not confirm or not found.accepted:
        return _discovery(name, found, interactions, ())
    kept, refused, report, steps = confirmed(source, found.accepted, name, seed, progress)
    shortlist = Shortlist(kept, (*refused, *found.refused), found.note, found.examined)
    return _discovery(name, shortlist, interactions + steps, (report,) if report is not None else ())


def search(transitions: Transitions, seed: int = 0, progress: Progress | None = None) -> Shortlist:
    """Return the group that a log obeys, by the search that suits its observations."""
    supported(transitions.observation_space, transitions.action_space)
    if len(transitions.observation_space.shape or ()) == 1:
        from equirl.verification.vectors import discover_vectors

        return discover_vectors(transitions, seed=seed, progress=progress)
    from equirl.verification.pictures import discover_pictures

    return discover_pictures(transitions, seed=seed, progress=progress)


def supported(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
    """Raise a `UserError` unless there is a search for observations and actions of these spaces.

    >>> supported(spaces.Discrete(3), spaces.Discrete(2))
    Traceback (most recent call last):
    equirl.errors.UserError: observation space Discrete(3): expected a Box of vectors or pictures
    """
    axes = len(observation_space.shape or ())
    if not isinstance(observation_space, spaces.Box) or axes not in (1, 2, 3):
        raise UserError(f"observation space {observation_space}: expected a Box of vectors or pictures")
    vectors = axes == 1 and isinstance(action_space, spaces.Box) and len(action_space.shape) == 1
    if not isinstance(action_space, spaces.Discrete) and not vectors:
        expected = "Discrete, or a Box with one axis" if axes == 1 else "Discrete with pictures"
        raise UserError(f"action space {action_space}: expected {expected}")


def confirmed(
    env: gym.Env[Any, Any], elements: tuple[Candidate, ...], name: str, seed: int, progress: Progress | None
) -> tuple[tuple[Candidate, ...], list[Candidate], Report | None, int]:
    """Return the elements that a check confirms, those that it refutes, its last report and the steps it took.

    The group is checked as a whole. Where it fails, its elements are checked one by one, and what remains is closed
    again: dropping elements of a group may open what is left.
    """
    from equirl.verification.check import check_symmetry

    def check(candidates: list[Candidate], controls: int) -> Report:
        pairs = [(candidate.observation_map, candidate.action_map) for candidate in candidates]
        claim = Symmetry.generated_by(*pairs, name=name)
        return check_symmetry(env, claim, controls=controls, seed=seed, progress=progress)

    report = check(generating(elements), 2)
    steps = report.interactions
    if _holds(report):
        return elements, [], report, steps
    kept, refused = [], []
    for candidate in elements:
        alone = check([candidate], 0)  # the check takes all powers of it
        steps += alone.interactions
        if _holds(alone):
            kept.append(candidate)
        else:
            note = f"{alone.verdict} by the check: {alone.reason}"
            refused.append(Candidate(candidate.observation_map, candidate.action_map, candidate.score, note))
    group = closed(kept)
    refused += [candidate for candidate in kept if candidate not in group]
    if not group:
        return (), refused, report, steps
    report = check(generating(group), 2)
    steps += report.interactions
    if _holds(report):
        return group, refused, report, steps
    return (), [*group, *refused], report, steps


def _holds(report: Report) -> bool:
    """Return whether a check leaves what the search found standing: it confirms it, or can say nothing either way."""
    return report.holds or report.verdict == "undecidable"


def _discovery(name: str, found: Shortlist, interactions: int, reports: tuple[Report, ...]) -> Discovery:
    generators = tuple(generating(found.accepted))
    return Discovery(
        name,
        found.symmetry(name),
        found.accepted,
        found.refused,
        interactions,
        reports[0] if reports else None,
        found.note,
        found.examined,
        generators,
    )
