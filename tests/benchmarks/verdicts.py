"""What the check says of every entry of the catalogue, and of ten altered claims beside each true one.

    python tests/benchmarks/verdicts.py         # tables, tests/benchmarks/verdicts.md and envs/measured.py

A false reject is an entry whose verdict in the catalogue the check does not reproduce; a false accept is an altered
claim that it lets pass.
"""

import argparse
import platform
import time
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.progress import track
from rich.table import Table

from equirl.envs import ENTRIES, make_to_check
from equirl.envs.catalogue import Entry
from equirl.verification import check_symmetry
from equirl.verification.controls import claims_beside

ROOT = Path(__file__).resolve().parents[2]
ALTERED = 10
COLUMNS = ("entry", "group", "listed", "found", "tier", "error", "altered claims refuted", "seconds")


def measured(entry: Entry) -> tuple[dict[str, Any], float]:
    """Return the row of an entry, and its error."""
    start = time.perf_counter()
    report = check_symmetry(make_to_check(entry.name), entry.symmetry)
    seconds = time.perf_counter() - start
    refuted = "-"
    if entry.verdict in ("exact", "exact in law"):
        env = make_to_check(entry.name)
        claim = entry.symmetry.fitted(env.observation_space)
        beside = claims_beside(claim, env.observation_space, env.action_space, 0, entry.same_actions)
        reports = [check_symmetry(env, altered, states=100, controls=0) for _, altered in islice(beside, ALTERED)]
        refuted = f"{sum(not report.holds for report in reports)} of {len(reports)}"
    values = (entry.name, str(report.symmetry.group), entry.verdict, report.verdict, str(report.tier))
    row = dict(zip(COLUMNS, (*values, f"{report.error:.1e}", refuted, f"{seconds:.1f}"), strict=True))
    return row, report.error


def main() -> None:
    """Check everything and write what was found."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    gym.logger.min_level = gym.logger.ERROR  # old versions of environments are here on purpose
    rows, errors = [], {}
    for entry in track(ENTRIES, "checking", console=Console(stderr=True)):
        row, errors[entry.name] = measured(entry)
        rows.append(row)
    wrong = [row["entry"] for row in rows if row["listed"] != row["found"]]
    counts = [row["altered claims refuted"].split(" of ") for row in rows if row["altered claims refuted"] != "-"]
    passed, tried = sum(int(b) - int(a) for a, b in counts), sum(int(b) for _, b in counts)
    table = Table(title="verdicts")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    summary = f"False rejects: {len(wrong)} of {len(rows)} entries. False accepts: {passed} of {tried} altered claims, "
    summary += f"those beside the {len(counts)} entries that hold exactly or in law; beside others none are tried."
    print(summary, *wrong)
    lines = ["# What the check says of the catalogue", "", summary, ""]
    lines += [f"Python {platform.python_version()}, Gymnasium {gym.__version__}, seed 0, one core of two.", ""]
    lines += ["Error: 99% of steps are off by at most so many typical changes a step; else see `Report.error`.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    (ROOT / "tests" / "benchmarks" / "verdicts.md").write_text("\n".join(lines) + "\n")
    listed = "".join(f'    "{name}": {error:.1e},\n' for name, error in errors.items())
    text = '"""`Report.error` of the entries of the catalogue, as tests/benchmarks/verdicts.py wrote them."""\n'
    (ROOT / "envs" / "measured.py").write_text(f"{text}\nERRORS: dict[str, float] = {{\n{listed}}}\n")


if __name__ == "__main__":
    main()
