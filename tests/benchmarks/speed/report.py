"""What a run found, as tables: on the terminal, and as Markdown with the same figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.benchmarks.speed.arms import PLAIN
from tests.benchmarks.speed.goals import GOALS, Row, added, find, shown
from tests.benchmarks.speed.measures import CPU, LEARN, NET, PREDICT, WALL
from tests.benchmarks.speed.ratios import of_bound, short, spread, times_faster

WIDTH = 100


class Shown(NamedTuple):
    """A table of text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(found: Mapping[str, Any]) -> list[Shown]:
    """Return all tables of a run, the goals last."""
    rows, batches, memory_batch = found["rows"], found["settings"]["batches"], found["settings"]["memory_batch"]
    rates = [LEARN, *(f"update {b}" for b in batches)]
    latencies = [*(f"forward {b}" for b in batches), PREDICT, NET]
    result = []
    for device, case in dict.fromkeys((row["device"], row["case"]) for row in rows):
        chosen = [row for row in rows if (row["device"], row["case"]) == (device, case) and "reason" not in row]
        plain = find(rows, device, case, "", PLAIN)
        if plain is None:
            continue
        where = f"{case} ({plain['network']}) on {device}"
        result += [
            _ratios(f"{where}: rates, plain = 1, more is better", chosen, rates, _rate(plain)),
            _ratios(f"{where}: times, plain = 1, less is better", chosen, latencies, _time(plain)),
            _ratios(f"{where}: CPU time, plain = 1 (medians)", chosen, rates + latencies, _cpu(plain)),
            _ratios(f"{where}: time / (|G| x plain) (medians)", chosen, rates + latencies, _bound(plain)),
            Shown(
                f"{where}: size, of plain in brackets",
                ("", "parameters", "FLOPs of a forward", f"peak of an update, batch {memory_batch}"),
                [_size(row, plain) for row in chosen],
            ),
        ]
    lost = [row for row in rows if "reason" in row]
    missing: list[tuple[str, ...]] = [(row["device"], row["case"], label(row), row["reason"]) for row in lost]
    if missing:
        result.append(Shown("not measured", ("device", "case", "arm", "reason"), missing))
    return [*missed(rows), *result, goals(rows)]


def missed(rows: Sequence[Row]) -> list[Shown]:
    """Return a table of the goals that are missed and why, none where there are none."""
    devices = list(dict.fromkeys(row["device"] for row in rows))
    lines: list[tuple[str, ...]] = [
        (goal.name, device, goal.because)
        for goal in GOALS
        for device in devices
        if goal.verdict(goal.measured(rows, device)) == "missed"
    ]
    return [Shown("missed, and why", ("goal", "on", "because"), lines)] if lines else []


def goals(rows: Sequence[Row]) -> Shown:
    """Return the table of what is aimed at; a pair of columns a device."""
    devices = list(dict.fromkeys(row["device"] for row in rows))
    columns = ["goal", "target"]
    for device in devices:
        columns += [f"on {device}", ""]
    lines = []
    for goal in GOALS:
        cells = [goal.name, goal.target]
        for device in devices:
            measured = goal.measured(rows, device)
            cells += [shown(measured), goal.verdict(measured)]
        lines.append(tuple(cells))
    return Shown("goals (median, smallest-largest)", tuple(columns), lines)


def label(row: Row) -> str:
    """Return an arm with its group.

    >>> label({"group": "C4", "arm": "loop"}), label({"group": "", "arm": "plain"})
    ('C4 loop', 'plain')
    """
    return f"{row['group']} {row['arm']}".strip()


def _ratios(title: str, rows: Sequence[Row], measures: Sequence[str], cell: Callable[[Row, str], str]) -> Shown:
    lines = [(label(row), *(cell(row, name) for name in measures)) for row in rows]
    return Shown(title, ("", *measures), lines)


def _rate(plain: Row) -> Callable[[Row, str], str]:
    def cell(row: Row, name: str) -> str:
        ours, theirs = (added(each, [name]) for each in (row, plain))
        return f"{1 / sorted(ours)[len(ours) // 2]:,.0f}/s" if row is plain else str(times_faster(ours, theirs))

    return cell


def _time(plain: Row) -> Callable[[Row, str], str]:
    def cell(row: Row, name: str) -> str:
        ours, theirs = (added(each, [name]) for each in (row, plain))
        return f"{1000 * sorted(ours)[len(ours) // 2]:.3g} ms" if row is plain else str(spread(ours, theirs))

    return cell


def _cpu(plain: Row) -> Callable[[Row, str], str]:
    return lambda row, name: short(spread(added(row, [name], CPU), added(plain, [name], CPU)).median)


def _bound(plain: Row) -> Callable[[Row, str], str]:
    def cell(row: Row, name: str) -> str:
        return short(of_bound(spread(added(row, [name], WALL), added(plain, [name], WALL)).median, row["order"]))

    return cell


def _size(row: Row, plain: Row) -> tuple[str, ...]:
    cells = [label(row)]
    for key, unit, text in (("parameters", 1.0, ",.0f"), ("flops", 1e6, ",.2f"), ("peak_bytes", 2**20, ",.1f")):
        if row[key] is None:
            cells.append("-")
            continue
        name = {"flops": " M", "peak_bytes": " MiB"}.get(key, "")
        cells.append(f"{format(row[key] / unit, text)}{name} ({short(row[key] / plain[key])})")
    return tuple(cells)


def show(shown: Sequence[Shown], console: Console) -> None:
    """Print tables that fit into 100 columns."""
    for each in shown:
        console.print(each.title, style="bold", width=WIDTH)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for i, column in enumerate(each.columns):
            table.add_column(column, justify="left" if i == 0 or each.columns[0] else "right", overflow="fold")
        for row in each.rows:
            table.add_row(*row)
        console.print(table, width=WIDTH)
        console.print()


def markdown(shown: Sequence[Shown], machine: Mapping[str, Any]) -> str:
    """Return tables as a page, what is aimed at first."""
    return "\n".join(_page(shown, machine)) + "\n"


def _page(shown: Sequence[Shown], machine: Mapping[str, Any]) -> Iterator[str]:
    yield "# Speed and memory"
    yield ""
    yield "`make bench` wrote this. Every ratio is the median over repetitions in which the arms took turns, with the"
    yield "smallest and the largest of them; the row `plain`, SB3's DQN as it comes, shows rates and times themselves."
    yield ""
    yield "; ".join(f"{name} {value}" for name, value in machine.items()) + "."
    for each in (*shown[-1:], *shown[:-1]):
        yield from ("", f"## {each.title}", "", f"| {' | '.join(each.columns)} |", "|" + "---|" * len(each.columns))
        for row in each.rows:
            yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"
