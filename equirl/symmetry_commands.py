"""The commands about symmetries: ``equirl symmetries``, ``check`` and ``discover``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from equirl.console import AsJson, Packages, import_modules, print_json, print_table, progress_bar, quiet_libraries
from equirl.errors import UserError, unknown

if TYPE_CHECKING:
    from equirl.symmetry import Symmetry
    from equirl.verification import Discovery, Report, Transitions

Environment = Annotated[str, typer.Argument(help="Gymnasium id, or a name that `equirl symmetries` lists.")]
Log = Annotated[
    Path | None,
    typer.Option(
        "--transitions",
        help="Judge by this .npz alone: observations, actions, rewards, next_observations, terminated, episodes.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]


def symmetries(
    env: Annotated[str | None, typer.Argument(help="An environment's id; all of them if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the catalogue of symmetries, or show what each element of one environment's symmetry does."""
    from equirl.envs import ENTRIES, entries_of
    from equirl.symmetry import registered_symmetries, resolve_symmetry

    if env is None:
        rows = _catalogue()
        if as_json:
            return print_json(rows)
        table = Table(box=SIMPLE_HEAD)
        for column in ("name", "group", "verdict", "error"):
            table.add_column(column, no_wrap=column != "name", overflow="fold")
        for row in rows:
            needs = f" (pip install 'equirl\\[{row['extra']}]')" if row["extra"] else ""
            error = "" if row["error"] is None else f"{row['error']:.0e}" if row["error"] else "0"
            table.add_row(f"{row['name']}\n  [dim]{row['note']}{needs}[/dim]", row["group"], row["verdict"], error)
        return Console().print(table)
    listed = {entry.name: entry for entry in ENTRIES}
    others = [entry.name for entry in entries_of(env)]
    if env not in listed and env not in registered_symmetries() and others:
        raise UserError(f"{env} has no symmetry without a variant: expected one of {', '.join(others)}")
    found = listed[env].symmetry if env in listed else resolve_symmetry(env)
    elements = [
        {"element": name, "observation": found.observation.describe(g), "action": found.action.describe(g)}
        for g, name in enumerate(found.group.names)
    ]
    if as_json:
        return print_json({"name": env, "group": str(found.group), "elements": elements, "data": found})
    title = f"{env}: {found.group}" + (f", {listed[env].verdict}" if env in listed else "")
    table = Table(title=title, caption=_as_made(env) or None)
    for column in ("element", "on observations", "on actions"):
        table.add_column(column, overflow="fold")
    for element in elements:
        table.add_row(*element.values())
    return Console().print(table)


def check(
    env: Environment,
    symmetry: Annotated[
        str | None,
        typer.Option(
            "--symmetry", help="A name that is listed, or dict(generators=[...]); the catalogue's by default."
        ),
    ] = None,
    transitions: Log = None,
    agent: Annotated[
        str | None, typer.Option("--agent", help="A run folder: its agent's states of play in place of random play's.")
    ] = None,
    states: Annotated[int, typer.Option("--states", help="States of play to step, and as many far from it.")] = 1000,
    seed: Seed = 0,
    gym_packages: Packages = None,
    as_json: AsJson = False,
) -> None:
    """Is a symmetry real? Exit code 0: it holds exactly, in law or approximately; 1: it does not, or none can say."""
    from equirl.verification import check_symmetry

    with quiet_libraries():
        import_modules(gym_packages)
        name = _entry_name(env)
        made, claim = _made(name), _claim(name, symmetry)
        with progress_bar() as progress:
            source = made if transitions is None else _logged(transitions, made)
            policy = None if agent is None else _policy(agent, made, gym_packages or ())
            report = check_symmetry(source, claim, states=states, policy=policy, seed=seed, progress=progress)
        made.close()
    if as_json:
        print_json(report.to_data())
    else:
        _print_report(name, report, _as_made(name))
    raise typer.Exit(0 if report.holds else 1)


def discover(
    env: Environment,
    transitions: Log = None,
    interactions: Annotated[
        int, typer.Option("-n", "--interactions", help="Environment steps to search by; confirming takes some more.")
    ] = 20_000,
    seed: Seed = 0,
    gym_packages: Packages = None,
    as_json: AsJson = False,
) -> None:
    """Which symmetries are there? Prints them ready to paste. Exit code 1: none was found."""
    from equirl.verification import discover_symmetries

    with quiet_libraries():
        import_modules(gym_packages)
        made = _made(env)
        with progress_bar() as progress:
            source = made if transitions is None else _logged(transitions, made)
            found = discover_symmetries(source, interactions=interactions, seed=seed, progress=progress)
        made.close()
    if as_json:
        print_json(found.to_data())
    else:
        _print_discovery(found)
    raise typer.Exit(0 if found.symmetry is not None else 1)


def _catalogue() -> list[dict[str, Any]]:
    """Return a row for every registered symmetry and every claim that the catalogue lists as refuted."""
    from equirl.envs import ENTRIES
    from equirl.envs.measured import ERRORS
    from equirl.symmetry import registered_symmetries, resolve_symmetry

    rows = []
    for entry in ENTRIES:
        group = entry.symmetry.group
        known = {key: getattr(entry, key) for key in ("name", "verdict", "note", "wrapper", "extra", "source")}
        rows.append({**known, "group": str(group), "order": len(group), "error": ERRORS.get(entry.name)})
    for name in sorted(set(registered_symmetries()) - {entry.name for entry in ENTRIES}):
        group = resolve_symmetry(name).group
        row = {"name": name, "verdict": "declared by its package", "note": "", "wrapper": None, "extra": None}
        if name == "none":
            row |= {"verdict": "exact", "note": "the identity alone, for a plain agent"}
        rows.append({**row, "source": "", "group": str(group), "order": len(group), "error": None})
    return rows


def _made(name: str) -> gym.Env[Any, Any]:
    """Return the environment of a catalogue entry or of an id, ready to be checked."""
    from equirl.envs import ENTRIES, make_to_check
    from equirl.runs import readable_errors, spec_of

    if name not in {entry.name for entry in ENTRIES}:
        spec_of(name)
    with readable_errors(name.split(":")[0]):
        return make_to_check(name)


def _entry_name(name: str) -> str:
    """Return the catalogue's name for an environment: where it has variants alone, the first that needs no keywords."""
    from equirl.envs import entries_of

    entries = sorted(entries_of(name), key=lambda entry: (bool(entry.variant), bool(entry.kwargs)))
    return entries[0].name if entries else name


def _claim(name: str, given: str | None) -> Symmetry:
    """Return the symmetry to check: the one named or given by generators, else what the catalogue says of the name."""
    from equirl.envs import ENTRIES
    from equirl.hyperparameters import parse_value
    from equirl.symmetry import registered_symmetries, resolve_symmetry

    entries = {entry.name: entry for entry in ENTRIES}
    if given is None:
        if name in entries:
            return entries[name].symmetry
        if name in registered_symmetries():
            return resolve_symmetry(name)
        raise UserError(
            f"no known symmetry of {name!r}: expected --symmetry with a name or generators; `equirl discover {name}` "
            "looks for one"
        )
    value = parse_value(given)
    if not isinstance(value, str):
        return resolve_symmetry(value)
    if value in entries:
        return entries[value].symmetry
    if value not in registered_symmetries():
        raise unknown("symmetry", value, sorted({*registered_symmetries(), *entries}))
    return resolve_symmetry(value)


def _policy(folder: str, env: gym.Env[Any, Any], packages: Collection[str]) -> Callable[[Any], Any]:
    """Return how the agent of a run acts on the environment's observations."""
    from equirl.loading import load_agent

    model, _ = load_agent(folder, packages=packages)
    try:
        model.predict(env.observation_space.sample(), deterministic=True)
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"agent of {folder} sees {model.observation_space}: expected one of {env.observation_space}, without stacks"
        ) from None
    return lambda observation: model.predict(observation, deterministic=True)[0]


def _logged(path: Path, env: gym.Env[Any, Any]) -> Transitions:
    from equirl.verification import Transitions

    return Transitions.load(path, env.observation_space, env.action_space)


def _as_made(name: str) -> str:
    """Return what beside its id makes the environment in which a listed symmetry holds, in a few words."""
    from equirl.envs import ENTRIES

    entry = next((entry for entry in ENTRIES if entry.name == name), None)
    if entry is None or not (entry.wrapper or entry.kwargs):
        return ""
    parts = [f"{key}={value!r}" for key, value in entry.kwargs.items()]
    parts += [entry.wrapper.rpartition(".")[2]] if entry.wrapper else []
    return f"as equirl.envs.make({name!r}) makes it: {', '.join(parts)}"


def _print_report(name: str, report: Report, as_made: str) -> None:
    """Print the verdict, what it rests on, the wrong claims beside it, and the states that break it most."""
    from equirl.verification.report import TIERS

    console = Console()
    numbers = report.numbers
    rows = {"verdict": report.verdict, "because": report.reason, "group": str(report.symmetry.group)}
    if as_made:
        rows["environment"] = as_made
    rows["evidence"] = f"tier {report.tier}, {TIERS[report.tier]}; {report.interactions:,} environment steps"
    if "error_in_standard_deviations" in numbers:
        rows["largest error"] = f"{numbers['error_in_standard_deviations']['max']:.1e} standard deviations"
        rows["largest reward error"] = f"{numbers['reward_error']['max']:.1e} of a typical reward"
        rows["terminations"] = (
            f"{numbers['terminations_differ']} of {numbers['steps']:,} differ "
            f"(at most {numbers['terminations_differ_at_most']:.2%} at 95%)"
        )
    if "bounds" in numbers:
        rows["bounds"] = numbers["bounds"]
    if "cost_in_return" in numbers:
        rows["cost"] = f"returns of mirrored play differ by {numbers['cost_in_return']:.1%} of their size"
    refuted = sum(row["refuted"] for row in report.controls)
    rows["wrong claims"] = f"{refuted} of {len(report.controls)} refuted"
    print_table(name, rows)
    for row in report.controls:
        console.print(f"    {row['name']}: {row['verdict']}", highlight=False)
    if report.worst:
        print("  states that break it most")
    for row in report.worst[:3]:
        console.print(f"    {row['origin']}, element {row['element']}, action {_short(row['action'])}", highlight=False)
        measured = [f"error {row['error']:.1e}"]
        if "rewards" in row:
            measured.append("rewards {:.4g} and {:.4g}".format(*row["rewards"]))
            measured.append("ends {} and {}".format(*("yes" if over else "no" for over in row["terminated"])))
        print(f"      {', '.join(measured)}")
        for line in _lines(row["observation"]):
            print(f"      {line}")


def _lines(observation: Any) -> list[str]:
    """Return an observation in a report as text, pictures row by row."""
    if not isinstance(observation, dict):
        return [_short(observation)]
    if "rows" in observation:
        return observation["rows"] or [f"a picture of {tuple(observation['shape'])}"]
    return [f"{key}: {line}" for key, part in observation.items() for line in _lines(part)]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{number:.3g}" if isinstance(number, float) else str(number) for number in value)
    return str(value)


def _print_discovery(found: Discovery) -> None:
    """Print the group, the evidence, the candidates, and the symmetry ready to paste."""
    console = Console()
    rows = {"group": str(found.symmetry.group) if found.symmetry is not None else "none found"}
    rows["searched"] = f"{found.examined:,} maps in {found.interactions:,} environment steps, confirming included"
    if found.report is not None:
        rows["confirmed"] = f"{found.report.verdict} (tier {found.report.tier}): {found.report.reason}"
    if found.score is not None and found.next_best is not None:
        rows["margin"] = f"scores of {found.score:.2f} at most, {found.next_best:.2f} for the next candidate"
    if found.note:
        rows["note"] = found.note
    print_table(found.environment, rows)
    candidates = [*((c, "found") for c in found.elements), *((c, c.note or "refused") for c in found.refused[:5])]
    if candidates:
        table = Table()
        for column in ("on observations", "on actions", "score", ""):
            table.add_column(column, overflow="fold")
        for candidate, note in candidates:
            maps = (_plain(candidate.observation_map), _plain(candidate.action_map))
            table.add_row(*maps, f"{candidate.score:.3g}", note)
        console.print(table)
    print(found.code())


def _plain(value: Any) -> str:
    """Return a map in plain terms without the parts that do nothing."""
    if not isinstance(value, dict):
        return str(value)
    parts = dict(value)
    if parts.get("permutation") == list(range(len(parts.get("permutation", ())))) and "signs" in parts:
        del parts["permutation"]
    return ", ".join(f"{key} {part}" for key, part in parts.items())
