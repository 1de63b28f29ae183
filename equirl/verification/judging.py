"""From comparisons of single steps to errors in units of the observation, and from these to a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equirl.verification.statistics import clopper_pearson, p_value, quantiles
from equirl.verification.stepping import BROAD, ON_POLICY, Comparison, Comparisons

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

BROKEN = 0.2
"""Error, in typical changes a step, above which a step counts as another one altogether."""

APPROXIMATE = 0.02
"""Largest 99th percentile of the errors of a symmetry that holds approximately, in typical changes a step."""

RARE, LOCAL = 0.01, 0.25
"""Largest share of broken steps that an approximate symmetry has anywhere, and a locally broken one far from play."""

SIGNIFICANT = 0.002
"""p-value below which laws of random steps count as different."""


@dataclass(frozen=True)
class Errors:
    """What every comparison came to; rows without a known image are left out."""

    rows: list[Comparison]
    rounding: Floats  # the largest difference of observation and reward, in standard deviations of these
    error: Floats  # the same in typical changes a step, the unit in which a wrong map is far off
    reward: Floats
    termination: Mask  # one side ends, the other does not
    broken: Mask
    tolerance: float  # of `rounding`
    p_laws: float  # of equal laws, over all states; 1 where no laws were compared

    def share(self, mask: Mask, origin: str | None = None) -> tuple[int, int]:
        """Return how many rows of an origin (of all without one) the mask holds for, and how many there are."""
        chosen = np.array([origin in (None, row.origin) for row in self.rows], dtype=np.bool_)
        return int((mask & chosen).sum()), int(chosen.sum())

    @property
    def exact(self) -> Mask:
        """Rows that agree to rounding."""
        return ~self.broken & (self.rounding <= self.tolerance)


def measured(found: Comparisons, precision: float) -> Errors:
    """Return the errors of comparisons, each dimension in its own units.

    A dimension's unit is its standard deviation over the steps where rounding is in question, and its root mean square
    change a step, if that is smaller, where another motion is: a position that moves by a thousandth of its range would
    hide a velocity of the wrong sign. Rewards are measured by their root mean square, pictures as a whole by mean
    absolute values.

    Args:
        found: the comparisons.
        precision: rounding of the environment's arithmetic, relative; at 0 every difference is another step.
    """
    rows = [row for row in found.rows if row.then]
    if not rows:
        none, never = np.zeros(0), np.zeros(0, np.bool_)
        return Errors([], none, none, none, never, never, 0.0, 1.0)
    single = any(pair[0].dtype == np.float32 for pair in rows[0].then)
    tolerance = max(1e-6 if single else 1e-8, 1000 * precision)
    in_law = np.array([row.laws is not None for row in rows])
    rewards = np.array([row.rewards for row in rows])
    typical = float(np.sqrt((rewards**2).mean())) or 1.0
    reward = np.where(in_law, 0.0, np.abs(rewards[:, 0] - rewards[:, 1]) / typical)
    termination = ~in_law & np.array([row.terminated[0] != row.terminated[1] for row in rows])
    rounding, error = reward, reward
    for part in range(len(rows[0].now)):
        now, then = (
            np.stack([pairs[part] for pairs in side]) for side in ([r.now for r in rows], [r.then for r in rows])
        )
        gaps = [_gap(now), np.where(in_law.reshape(-1, *[1] * (then.ndim - 2)), 0.0, _gap(then))]
        for unit, worst in zip(_units(now[:, 0], then[:, 0]), ("rounding", "error"), strict=True):
            relative = np.max([_largest(gap / unit) for gap in gaps], axis=0)
            if worst == "rounding":
                rounding = np.maximum(rounding, relative)
            else:
                error = np.maximum(error, relative)
    broken = (error > (BROKEN if precision else 0.0)) | termination | np.array([_differs(row) for row in rows])
    pooled = [row.laws for row in rows if row.laws is not None]
    p_laws = p_value(np.sum(pooled, axis=0)) if pooled else 1.0
    return Errors(rows, rounding, error, reward, termination, broken, tolerance, p_laws)


def _gap(pairs: NDArray[Any]) -> Floats:
    """Return the absolute difference of pairs (n, 2, ...): 0 or 1 for numbers that only name something."""
    gap: Floats = np.abs(pairs[:, 0].astype(np.float64) - pairs[:, 1])
    return (gap > 0).astype(np.float64) if _is_name(pairs[:, 0]) else gap


def _is_name(values: NDArray[Any]) -> bool:
    return values.ndim == 1 and values.dtype.kind in "biu"


def _units(now: NDArray[Any], then: NDArray[Any]) -> tuple[Any, Any]:
    """Return in what units to measure rounding and errors: one a dimension for vectors, one in all for pictures."""
    if _is_name(then):
        return 1.0, 1.0
    values, changes = then.astype(np.float64), then.astype(np.float64) - now
    if values.ndim > 2:
        spread, change = np.abs(values - values.mean(0)).mean(), np.abs(changes).mean()
    else:
        spread, change = values.std(0), np.sqrt((changes**2).mean(0))
    tiny = 1e-8 * np.maximum(1.0, np.abs(values).max(0 if values.ndim <= 2 else None))
    spread = np.where(spread <= tiny, 1.0, spread)
    return spread, np.where(change <= tiny, spread, np.minimum(spread, change))


def _largest(relative: Floats) -> Floats:
    """Return the largest of a vector's dimensions, or the mean over a picture, for each row."""
    flat = relative.reshape(len(relative), -1)
    found: Floats = flat.mean(1) if relative.ndim > 2 else flat.max(1)
    return found


def _differs(row: Comparison) -> bool:
    """Whether the laws of one state's next states differ in most of their mass, more than shuffled sides do."""
    return row.laws is not None and bool(row.laws[0] > 0.5) and p_value(row.laws) < SIGNIFICANT


def judged(errors: Errors, random: bool) -> tuple[str, str]:
    """Return the verdict and the sentence that says why."""
    total = len(errors.rows)
    broken, _ = errors.share(errors.broken)
    met_broken, met = errors.share(errors.broken, ON_POLICY)
    far_broken, far = errors.share(errors.broken, BROAD)
    p99 = quantiles(errors.error[~errors.broken])["p99"]
    rounding = float(errors.rounding.max(initial=0.0))
    bound = clopper_pearson(broken, total)[1]
    seen = f"{met:,} states of play" + (f" and {far:,} far from it" if far else "")
    if not broken and errors.p_laws < SIGNIFICANT:
        return "rejected", f"no single state differs, but the laws of next states do (p = {errors.p_laws:.4f}, {seen})"
    if not broken and rounding <= errors.tolerance:
        if random:
            return "exact in law", f"next states have the same law on {seen}; broken on at most {bound:.2%} of such"
        return (
            "exact",
            f"largest error {rounding:.1e} standard deviations on {seen}; broken on at most {bound:.2%} of such states",
        )
    inexact = int((~errors.broken & ~errors.exact).sum())
    if broken <= RARE * total and p99 <= APPROXIMATE and inexact:
        extra = f", {broken} of {total:,} steps apart altogether" if broken else ""
        return "approximate", f"99% of errors are at most {p99:.1e} of a step's change on {seen}{extra}"
    exact_met, _ = errors.share(errors.exact, ON_POLICY)
    if exact_met >= (1 - RARE) * met and met_broken <= RARE * met and far_broken <= LOCAL * max(far, 1):
        return (
            "locally broken",
            f"exact in {exact_met:,} of {met:,} states of play, broken in {far_broken:,} of {far:,} far from it",
        )
    if broken <= RARE * total and p99 > APPROXIMATE:
        return "rejected", f"1% of errors exceed {p99:.1e} of a step's change, more than {APPROXIMATE} on {seen}"
    low, high = clopper_pearson(broken, total)
    return "rejected", f"{broken:,} of {total:,} steps break it (95% interval {low:.1%} to {high:.1%}; {seen})"


def numbers_of(errors: Errors) -> dict[str, Any]:
    """Return the numbers of a report, plain data."""
    broken, total = errors.share(errors.broken)
    ended, _ = errors.share(errors.termination)
    found: dict[str, Any] = {
        "steps": total,
        "error": quantiles(errors.error),
        "error_in_standard_deviations": quantiles(errors.rounding),
        "reward_error": quantiles(errors.reward),
        "tolerance": errors.tolerance,
        "terminations_differ": ended,
        "terminations_differ_at_most": clopper_pearson(ended, total)[1],
        "broken": broken,
        "broken_at_most": clopper_pearson(broken, total)[1],
    }
    for origin in (ON_POLICY, BROAD):
        count, of = errors.share(errors.broken, origin)
        found[f"{origin.replace('-', '_')}_broken"] = [count, of]
    if any(row.laws is not None for row in errors.rows):
        found["p_equal_laws"] = errors.p_laws
    return found


def worst_of(errors: Errors, names: tuple[str, ...], count: int = 5) -> list[dict[str, Any]]:
    """Return the steps that speak most against the claim, worst first; those that agree to rounding are left out."""
    law = np.array([row.laws[0] if row.laws is not None else 0.0 for row in errors.rows])
    rank = np.maximum(errors.error, law) + errors.termination
    order = [
        i for i in np.argsort(-rank, kind="stable")[:count] if errors.broken[i] or errors.error[i] > errors.tolerance
    ]
    return [
        {
            "origin": errors.rows[i].origin,
            "element": names[errors.rows[i].element],
            "observation": _plain(errors.rows[i].observation),
            "action": _plain(errors.rows[i].action),
            "error": float(errors.error[i]),
            "rewards": list(errors.rows[i].rewards),
            "terminated": list(errors.rows[i].terminated),
        }
        for i in order
    ]


def _plain(value: Any) -> Any:
    """Return a value as JSON data, small pictures as rows of letters."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    array = np.asarray(value)
    if array.ndim > 1:
        return {"shape": list(array.shape), "rows": _drawn(array)}
    return np.round(array.astype(np.float64), 5).tolist() if array.dtype.kind == "f" else array.tolist()


def _drawn(array: NDArray[Any]) -> list[str]:
    """Return a small sparse picture as text: the number of the channel that is not 0, + for several, . for none."""
    if array.ndim != 3 or min(array.shape) > 10 or sorted(array.shape)[1] > 20:
        return []
    channels = array if array.shape[0] <= array.shape[-1] else np.moveaxis(array, -1, 0)
    count, last = (channels != 0).sum(0), len(channels) - 1 - (channels[::-1] != 0).argmax(0)
    letters = np.where(count == 0, ".", np.where(count > 1, "+", np.char.mod("%d", last)))
    return ["".join(row) for row in letters]
