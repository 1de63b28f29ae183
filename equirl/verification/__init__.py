"""Is the symmetry that an environment claims real, and which are there: `check_symmetry` and `discover_symmetries`."""

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
