"""Search for the symmetries of logged transitions of vectors: signed permutations of entries, and of actions.

Maps of observations are enumerated by `Structure`; the map of actions that suits each of them best is one assignment
problem, not n! trials; a candidate's score is rho of `equirl.verification.logs`, that of its worst target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from equirl.errors import UserError
from equirl.verification.candidates import Candidate, Shortlist, closed
from equirl.verification.logs import CONTRADICTED, REFUTED, TOLERANCE, Evidence, Move
from equirl.verification.structure import EntryMap, Slopes, Structure
from equirl.verification.transitions import Progress, Transitions

Array = NDArray[Any]

MOST = 1000
"""Maps of observations that are scored at most."""

MOST_LEARNED = 16
"""Maps whose images are learned from at most, those that fit best."""

FEW, SOME = 100, 800  # rows on which all, and on which promising candidates are scored
DISTINCT = 5.0  # standard errors between the effects of two actions that are not the same


@dataclass(frozen=True, eq=False)
class _Scored:
    """A candidate with its arrays."""

    entries: EntryMap
    actions: Array  # of a Discrete space where each goes; of a Box the row of images, then the row of signs
    ratio: float
    worst: str

    def candidate(self, discrete: bool) -> Candidate:
        if discrete:
            done: Any = self.actions.tolist()
        else:
            done = {"permutation": self.actions[0].tolist(), "signs": self.actions[1].tolist()}
        return Candidate(self.entries.to_data(), done, self.ratio, f"worst at {self.worst}")


def discover_vectors(transitions: Transitions, *, seed: int = 0, progress: Progress | None = None) -> Shortlist:
    """Return the group of signed permutations of entries and actions under which transitions fit as well as before.

    Args:
        transitions: of a Box with one axis, under Discrete actions or a Box of them with one axis.
        seed: of the split, the model and the rows that are compared.
        progress: told how far it is.

    Raises:
        UserError: fewer than 1,000 transitions, or other spaces.

    >>> import gymnasium as gym
    >>> found = discover_vectors(Transitions.record(gym.make("CartPole-v1"), 2000))
    >>> [(candidate.observation_map, candidate.action_map) for candidate in found.accepted]
    [({'signs': [-1, -1, -1, -1]}, [1, 0])]
    """
    if not isinstance(transitions.action_space, spaces.Discrete | spaces.Box):
        raise UserError(f"action space {transitions.action_space}: expected Discrete, or a Box with one axis")
    search = _Search(Evidence(transitions, seed))
    families = [search.family(centre, progress) for centre in search.centres()]
    best = max(families, key=lambda family: (len(family[0]), -max((c.score for c in family[0]), default=0.0)))
    kept = {candidate.pair for candidate in best[0]}
    others = [candidate for _, scored in families for candidate in scored if candidate.pair not in kept]
    refused = sorted(others, key=lambda candidate: candidate.score)[:10]
    return Shortlist(best[0], tuple(refused), "; ".join(search.notes), search.examined)


class _Search:
    """Scores maps on one log."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence, self.model, self.discrete = evidence, evidence.model, evidence.steps.discrete
        self.slopes = Slopes(evidence)
        self.examined = 0
        self.known: dict[tuple[float, ...], _Scored | None] = {}  # by map, as far as its centre matters
        self.notes: list[str] = []
        count = len(evidence.held)
        self.all = evidence.rng.permutation(count)
        self.few = self.all[:FEW]
        self.size = evidence.steps.inputs.shape[1]
        self.cost_scale = self.model.open**2 + (TOLERANCE * self.model.spread) ** 2 + 1e-18
        self.inputs, self.actions, _ = evidence.rows(evidence.held[self.few])
        if self.discrete:
            self.classes = classes_of(evidence)
            self.before = self._by_class(self.inputs)
        else:
            space = evidence.steps.transitions.action_space
            self.bounds = np.stack([space.low, space.high])  # type: ignore[attr-defined]
            middle = (self.bounds[0] + self.bounds[1]) / 2
            self.rest = np.where(np.isfinite(middle), middle, 0.0)  # stays where it is under every map of actions
            self.before = self._slopes(self.inputs)
            self.drift = self._resting(self.inputs)

    def centres(self) -> list[Array]:
        """Return what entries may be mirrored about: 0; the middles of their bounds; the middles of the log."""
        steps = self.evidence.steps
        space: Any = steps.transitions.observation_space
        with np.errstate(invalid="ignore"):
            middle = (np.asarray(space.low, float) + np.asarray(space.high, float)) / 2
        middle = np.where(np.isfinite(middle) & (np.abs(middle) > 1e-6), middle, 0.0)
        median, spread = np.median(steps.inputs, axis=0), steps.inputs.std(0)
        away = (np.abs(median) > 0.5 * spread) & (spread > 0)
        logged = np.where(away, [rounded(m, 0.25 * s) for m, s in zip(median, spread, strict=True)], 0.0)
        found = [np.zeros(self.size)]
        for centre in (middle, np.where(middle != 0, middle, logged)):
            if not any(np.allclose(centre, other) for other in found):
                found.append(centre)
        return found

    def family(self, centre: Array, progress: Progress | None) -> tuple[tuple[Candidate, ...], list[Candidate]]:
        """Return the group found about one centre, and every candidate that was scored, as far as it was scored."""
        structure = Structure(self.slopes, centre)
        scored = []
        for number, entries in enumerate(structure.maps(MOST)):
            if progress is not None and number % 50 == 0:
                progress("scoring candidates", min(1.0, number / MOST))
            found = self._score(entries)
            if found is not None:
                scored.append(found)
        if not structure.complete:
            self.notes.append(f"of the maps that a less symmetric log could hide, {MOST} were scored")
        scored.sort(key=lambda one: one.ratio)
        full = [self._scored(one.entries, one.actions, self.all) for one in scored if one.ratio < 2 * REFUTED]
        fit = [one for one in full if self._fits(one)]
        kept = [one for one in fit[:MOST_LEARNED] if self.evidence.rise(self._move(one)) <= CONTRADICTED]
        if len(fit) > MOST_LEARNED:
            self.notes.append(f"{len(fit)} maps fit, of which the best {MOST_LEARNED} were looked into")
        group = closed(one.candidate(self.discrete) for one in kept)
        elements = {candidate.pair for candidate in group}
        inside = [one for one in kept if one.candidate(self.discrete).pair in elements]
        others = [*(one for one in full if not any(one is other for other in inside)), *scored[len(full) :]]
        matters = np.any([one.entries.matters for one in inside], axis=0) if inside else np.zeros(self.size, bool)
        named = [self._about(one, np.where(matters, centre, 0.0)).candidate(self.discrete) for one in inside]
        return tuple(named), [*named, *(one.candidate(self.discrete) for one in others)]

    @staticmethod
    def _about(one: _Scored, centre: Array) -> _Scored:
        return replace(one, entries=replace(one.entries, centre=centre))

    def _score(self, entries: EntryMap) -> _Scored | None:
        """Return the candidate with the actions that suit it best, or None where few rows show that it fails."""
        if entries.key not in self.known:
            self.examined += 1
            self.known[entries.key] = self._fresh(entries)
        found = self.known[entries.key]
        return None if found is None else self._about(found, entries.centre)

    def _fresh(self, entries: EntryMap) -> _Scored | None:
        hopeless = self._hopeless(entries)
        if hopeless is not None:
            return hopeless
        actions = self._match(entries)
        if actions is None:
            return None
        one = self._scored(entries, actions, self.few)
        return self._scored(entries, actions, self.all[:SOME]) if one.ratio < 2 * REFUTED else one

    def _fits(self, one: _Scored) -> bool:
        """Return whether the ratio is below the limit, or may be, so far as its interval tells."""
        if one.ratio <= REFUTED or one.ratio > 2 * REFUTED:
            return one.ratio <= REFUTED
        moved = self._move(one)(*self.evidence.rows(self.evidence.held[self.all]))
        return self.evidence.estimate(self.all, *moved)[2][0] <= REFUTED

    def _hopeless(self, entries: EntryMap) -> _Scored | None:
        """Return the score of a map that no map of actions can help, by relations or by what happens without action."""
        moved = entries.move(self.inputs)
        names, ratios = list(self.evidence.names[len(self.model.caps) :]), self.evidence.broken(moved)
        if not self.discrete:
            drift = self._turned(entries, self.drift) - self._resting(moved)
            ratios = np.concatenate([ratios, np.sqrt((drift**2).mean(0) / self.cost_scale)])
            names += self.evidence.names
        if ratios.max(initial=0.0) <= 2 * REFUTED:
            return None
        stay = np.arange(len(self.model.known) if self.discrete else len(self.rest))
        actions = stay if self.discrete else np.stack([stay, np.ones_like(stay)])
        return _Scored(entries, actions, float(ratios.max()), names[int(ratios.argmax())])

    def _move(self, one: _Scored) -> Move:
        def move(inputs: Array, actions: Array, targets: Array) -> tuple[Array, Array, Array]:
            changes = np.column_stack([one.entries.turn(targets[:, : self.size]), targets[:, self.size :]])
            if self.discrete:
                return one.entries.move(inputs), one.actions[actions], changes
            moved = np.empty_like(actions)
            moved[:, one.actions[0]] = actions * one.actions[1]
            return one.entries.move(inputs), moved, changes

        return move

    def _scored(self, entries: EntryMap, actions: Array, places: Array) -> _Scored:
        one = _Scored(entries, actions, 0.0, "")
        ratios = self.evidence.screen(places, self._move(one))
        worst = int(ratios.argmax())
        return replace(one, ratio=float(ratios[worst]), worst=self.evidence.names[worst])

    def _turned(self, entries: EntryMap, values: Array) -> Array:
        """Return targets (..., d + 2) moved."""
        d = self.size
        parts = [entries.turn(values[..., :d]), values[..., d : d + 2]]
        if values.shape[-1] > d + 2:
            parts.append(entries.turn(values[..., d + 2 :]))  # the small changes
        return np.concatenate(parts, axis=-1)

    def _match(self, entries: EntryMap) -> Array | None:
        """Return the action map whose effects, after the map of observations, are nearest to those before it."""
        before = self._turned(entries, self.before)
        moved = entries.move(self.inputs)
        if self.discrete:
            costs = self._costs(before, self._by_class(moved))
            sizes = np.array([len(members) for members in self.classes])
            costs = np.where(sizes[:, None] == sizes, costs + 1e-9 * (1 - np.eye(len(sizes))), 1e12)
            images = np.empty(sizes.sum(), np.int64)
            for a, b in zip(*linear_sum_assignment(costs), strict=True):
                images[self.classes[a]] = self.classes[b]  # in order, so that equal actions do not multiply maps
            return images
        after, ends = self._slopes(moved), self.bounds
        costs = np.stack([self._costs(before, sign * after) for sign in (1, -1)])
        for k, sign in enumerate((1, -1)):
            images = np.sort(sign * ends, axis=0)
            stay = np.isclose(images[:, :, None], ends[:, None, :]).all(0)
            costs[k] = np.where(stay, costs[k], 1e12)
        count = costs.shape[1]
        costs[0] -= 1e-9 * np.eye(count)
        costs[1] += 1e-9
        rows, columns = linear_sum_assignment(costs.min(0))
        if costs.min(0)[rows, columns].max() >= 1e12:
            return None
        return np.stack([columns, np.where(costs[1] < costs[0], -1, 1)[rows, columns]])

    def _costs(self, before: Array, after: Array) -> Array:
        """Return the squared differences between each of (n, rows, targets) and each other, in units of residuals."""
        a, b = ((values / np.sqrt(self.cost_scale)).reshape(len(values), -1) for values in (before, after))
        found: Array = ((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T) / before.shape[1]
        return found

    def _by_class(self, inputs: Array) -> Array:
        """Return what is expected of each class of actions, (classes, rows, targets)."""
        every = self.model.every(inputs)
        return np.stack([every[members].mean(0) for members in self.classes])

    def _slopes(self, inputs: Array) -> Array:
        """Return the derivative of targets by each entry of actions, (entries, rows, targets), times its spread."""
        spread = self.evidence.steps.actions.std(0)
        steps = 0.25 * np.diag(spread)
        ends = [
            self.model(np.tile(inputs, (len(spread), 1)), np.repeat(self.rest + sign * steps, len(inputs), 0))
            for sign in (1, -1)
        ]
        found: Array = (ends[0] - ends[1]).reshape(len(spread), len(inputs), -1) / 0.5
        return found

    def _resting(self, inputs: Array) -> Array:
        return self.model(inputs, np.tile(self.rest, (len(inputs), 1)))


def classes_of(evidence: Evidence) -> list[list[int]]:
    """Return the Discrete actions in classes of those whose effects the log does not tell apart.

    Residuals of a model that knows no action are compared: their means and their products with each entry, by z.
    """
    rows = evidence.steps.transitions.observations.shape[0]
    inputs, actions, targets = evidence.rows(np.arange(rows))
    features = evidence.model.features(inputs)[:, : evidence.model.features.ends[1]]
    targets = evidence.model.capped(targets)
    known = evidence.model.spread > 1e-9
    weights, *_ = np.linalg.lstsq(features, targets[:, known], rcond=1e-8)
    residuals = targets[:, known] - features @ weights
    residuals /= residuals.std(0) + 1e-9 * np.abs(targets[:, known]).max(0)
    probes = features[:, : evidence.model.features.ends[0]]
    count = len(evidence.model.known)
    means, errors = [], []
    for action in range(count):
        mask = actions == action
        number = max(int(mask.sum()), 1)
        products = [(probes[mask] ** k).T @ (residuals[mask] ** k) / number for k in (1, 2)]
        means.append(products[0])
        errors.append((products[1] - products[0] ** 2) / number)
    classes: list[list[int]] = []
    for action in range(count):
        for members in classes:
            if all(_same(action, other, means, errors, evidence.model.known) for other in members):
                members.append(action)
                break
        else:
            classes.append([action])
    return classes


def _same(a: int, b: int, means: list[Array], errors: list[Array], known: Array) -> bool:
    if not known[a] or not known[b]:
        return bool(known[a] == known[b])
    z = np.abs(means[a] - means[b]) / np.sqrt(errors[a] + errors[b] + 1e-18)
    return bool(z.max() < DISTINCT)


def rounded(value: float, tolerance: float) -> float:
    """Return the number with the fewest decimals that is no farther from the value than the tolerance.

    >>> rounded(3.0412, 0.1), rounded(-0.5239, 0.01)
    (3.0, -0.52)
    """
    return next(
        (float(round(value, digits)) for digits in range(-3, 8) if abs(round(value, digits) - value) <= tolerance),
        float(value),
    )
