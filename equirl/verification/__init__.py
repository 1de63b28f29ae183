"""Is the symmetry that an environment claims real, and which are there: `check_symmetry` and `discover_symmetries`.

Names are imported when they are first asked for: the statistics behind them take longer to load than all the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equirl.verification.check import check_symmetry
    from equirl.verification.discovery import Discovery, discover_symmetries
    from equirl.verification.report import Report
    from equirl.verification.simulators import ByObservation, Outcome, Simulator, register_simulator, simulator_of
    from equirl.verification.transitions import Transitions

__all__ = [
    "ByObservation",
    "Discovery",
    "Outcome",
    "Report",
    "Simulator",
    "Transitions",
    "check_symmetry",
    "discover_symmetries",
    "register_simulator",
    "simulator_of",
]

_HOMES = {
    "check": ("check_symmetry",),
    "discovery": ("Discovery", "discover_symmetries"),
    "report": ("Report",),
    "simulators": ("ByObservation", "Outcome", "Simulator", "register_simulator", "simulator_of"),
    "transitions": ("Transitions",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"equirl.verification.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
