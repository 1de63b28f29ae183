"""What the toolkit promises of its speed, and whether a run shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.speed.arms import PLAIN
from tests.benchmarks.speed.measures import LEARN, PREDICT, WALL
from tests.benchmarks.speed.ratios import Spread, short, spread, times_faster

Row = Mapping[str, Any]
AT_LEAST, AT_MOST = "at least", "at most"
MEMORY = "peak bytes"


@dataclass(frozen=True)
class Goal:
    """One promise: how many times faster than another arm, or how many times its time or memory.

    Args:
        case: a case's name.
        group: the group of the arm.
        arm: the arm that promises.
        measures: what is added up, or `MEMORY`.
        side: `AT_LEAST` compares rates, `AT_MOST` times.
        bound: the ratio that is promised.
        against: the arm that is 1.
        because: what keeps it from being met, as far as that was found out.
    """

    case: str
    group: str
    arm: str
    measures: tuple[str, ...]
    side: str
    bound: float
    against: str = PLAIN
    because: str = ""

    @property
    def name(self) -> str:
        """What is promised, in words."""
        than = "" if self.against == PLAIN else f" against {self.against}"
        return f"{self.case} {self.group} {self.arm}, {' + '.join(self.measures)}{than}"

    @property
    def target(self) -> str:
        """The bound, in words."""
        return f"{self.side} {self.bound:g}"

    def measured(self, rows: Sequence[Row], device: str) -> Spread | str:
        """Return the ratio in a run, or why there is none."""
        sides = []
        for arm in (self.arm, self.against):
            row = find(rows, device, self.case, self.group, arm)
            if row is None:
                return "not in this run"
            if "reason" in row:
                return str(row["reason"])
            missing = [name for name in self.measures if name != MEMORY and name not in row["samples"]]
            if missing or (self.measures == (MEMORY,) and row["peak_bytes"] is None):
                return "not in this run"
            sides.append(row)
        if self.measures == (MEMORY,):
            return Spread(*[sides[0]["peak_bytes"] / sides[1]["peak_bytes"]] * 3)
        ours, theirs = (added(row, self.measures) for row in sides)
        return times_faster(ours, theirs) if self.side == AT_LEAST else spread(ours, theirs)

    def verdict(self, measured: Spread | str) -> str:
        """Return met or missed by the median, or nothing."""
        if isinstance(measured, str):
            return "not measured"
        met = measured.median >= self.bound if self.side == AT_LEAST else measured.median <= self.bound
        return "met" if met else "missed"


def find(rows: Sequence[Row], device: str, case: str, group: str, arm: str) -> Row | None:
    """Return the row of an arm; arms without a group stand for every group."""
    for row in rows:
        if (row["device"], row["case"], row["arm"]) == (device, case, arm) and row["group"] in (group, ""):
            return row
    return None


def added(row: Row, measures: Sequence[str], clock: str = WALL) -> list[float]:
    """Return samples of several measures added up, repetition by repetition."""
    return [sum(each) for each in zip(*(row["samples"][name][clock] for name in measures), strict=True)]


def shown(measured: Spread | str) -> str:
    """Return the ratio as a table shows it: once where nothing spreads."""
    if isinstance(measured, str):
        return measured
    return short(measured.median) if measured.smallest == measured.largest else str(measured)


_BOTH = ("forward 32", "update 32")
_PRODUCTS = (
    "products of matrices alone, twice as many as the plain network's, take a third of a plain step, acting and the "
    "environment a sixth: 2.3 is what nothing else would leave"
)
_CONVOLUTIONS = (
    "all views pass the same convolutions, whose operations no batching saves; they run near the processor's peak, and "
    "what a larger batch saves in calls its activations cost in the caches"
)
_TARGETS = "targets stay exact: the target network sees all four views of each next state"
_PACKING = (
    "the linear layer's weights are put into the kernel's order at each call; to keep them so, a call would have to "
    "know that no bit has changed, and to compare them costs what it saves"
)
GOALS = (
    Goal("CartPole", "C2", "equitune", (LEARN,), AT_LEAST, 1.2),
    Goal("CartPole", "C2", "compiled", (LEARN,), AT_LEAST, 2.5, because=_PRODUCTS),
    Goal("GridWorld", "C4", "equitune", (LEARN,), AT_LEAST, 0.6, because=_CONVOLUTIONS),
    Goal("GridWorld", "C4", "orbit_samples=1", (LEARN,), AT_LEAST, 1.0, because=_TARGETS),
    Goal("GridWorld", "C4", "native", (LEARN,), AT_LEAST, 0.9),
    Goal("Pong-shaped", "C2", "equitune", (LEARN,), AT_LEAST, 0.65),
    Goal("Pong-shaped", "C2", "orbit_samples=1", (LEARN,), AT_LEAST, 1.0),
    Goal("Pong-shaped", "C4", "equitune", (PREDICT,), AT_MOST, 1.5, because=_PACKING),
    Goal("GridWorld", "C4", "equitune", _BOTH, AT_LEAST, 1.5, against="loop", because=_CONVOLUTIONS),
    Goal("Pong-shaped", "C4", "equitune", _BOTH, AT_LEAST, 1.5, against="loop", because=_CONVOLUTIONS),
    Goal("GridWorld", "C4", "native", ("update 64",), AT_MOST, 1.3),
    Goal("GridWorld", "C4", "native", ("update 128",), AT_MOST, 1.3),
    Goal("GridWorld", "C4", "native", (PREDICT,), AT_MOST, 1.2),
    Goal("GridWorld", "C4", "canonical", ("update 32",), AT_MOST, 1.5),
    Goal("GridWorld", "C4", "canonical", (PREDICT,), AT_MOST, 1.3),
    Goal("GridWorld", "C4", "canonical", _BOTH, AT_LEAST, 2, against="equiadapt"),
    Goal("GridWorld", "C4", "equitune", ("update 32",), AT_LEAST, 3, against="escnn"),
    Goal("GridWorld", "C4", "native", ("update 32",), AT_LEAST, 6, against="escnn"),
    Goal("GridWorld", "C4", "equitune", (MEMORY,), AT_MOST, 4),
    Goal("GridWorld", "D4", "equitune", (MEMORY,), AT_MOST, 8),
    Goal("Pong-shaped", "C4", "equitune", (MEMORY,), AT_MOST, 4),
)
"""What is aimed at; the peak of memory is that of an update at batch 128."""
