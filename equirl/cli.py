"""The command line: ``equirl train``, ``evaluate``, ``enjoy``, ``wrap``; `symmetry_commands` has those on symmetries.

Results go to standard output, as tables or, with ``--json``, as one JSON document; progress goes to standard error.
Exit code 0: done. 1: the answer is no. 2: bad input, said in one line.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from equirl import symmetry_commands
from equirl.console import (
    Agent,
    AsJson,
    OfAlgo,
    OfEnv,
    Packages,
    Trust,
    command_line,
    import_modules,
    one_line,
    print_json,
    print_notes,
    print_table,
    progress_bar,
    quiet_libraries,
    shown,
)
from equirl.errors import UserError
from equirl.methods import METHODS
from equirl.process import stopped_as_by_ctrl_c, use_threads, without_denormals
from equirl.values import OF_VALUES

if TYPE_CHECKING:
    from equirl.loading import Found
    from equirl.runs import Settings

app = typer.Typer(
    help="Equivariant reinforcement-learning agents for Gymnasium and Stable-Baselines3.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    # TensorBoard's writers look for TensorFlow, whose absence is of no interest to anyone here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (UserError, TyperException) as error:
        said = error.format_message() if isinstance(error, TyperException) else str(error)
        print(f"error: {one_line(said)}", file=sys.stderr)
        code = 2
    raise SystemExit(code or 0)


@app.callback()
def _group() -> None:
    """Equivariant reinforcement-learning agents for Gymnasium and Stable-Baselines3."""


@app.command()
def train(
    ctx: typer.Context,
    env: Annotated[
        str | None, typer.Option("--env", help="Gymnasium id of the environment; CartPole-v1 if not given.")
    ] = None,
    algo: Annotated[
        str | None, typer.Option("--algo", help="dqn, qrdqn, ppo, a2c, sac or td3; dqn if not given.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help=f"{', '.join([*METHODS, *OF_VALUES])}; the configuration's if not given."),
    ] = None,
    symmetry: Annotated[
        str | None, typer.Option("--symmetry", help="auto (from the catalogue), none, or a name that is listed.")
    ] = None,
    n_timesteps: Annotated[int | None, typer.Option("-n", "--n-timesteps", help="Environment steps.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = 0,
    log_folder: Annotated[Path, typer.Option("-f", "--log-folder", help="Where run folders go.")] = Path("logs"),
    hyperparams: Annotated[
        list[str] | None, typer.Option("-P", "--hyperparams", help="Overrides, key:value; may be repeated.")
    ] = None,
    conf_file: Annotated[
        Path | None, typer.Option("--conf-file", help="Hyper-parameters in RL Zoo's format, in place of ours.")
    ] = None,
    n_envs: Annotated[int | None, typer.Option("--n-envs", help="Environments side by side.")] = None,
    eval_freq: Annotated[int | None, typer.Option("--eval-freq", help="Steps between evaluations.")] = None,
    eval_episodes: Annotated[int, typer.Option("--eval-episodes", help="Episodes an evaluation.")] = 5,
    save_freq: Annotated[int | None, typer.Option("--save-freq", help="Steps between checkpoints.")] = None,
    num_threads: Annotated[
        int | None, typer.Option("--num-threads", help="Torch's threads; 1 if not given, all for Atari; -1 for all.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")] = "auto",
    compile_steps: Annotated[
        bool, typer.Option("--compile", help="Make dqn's gradient step one program (torch.compile, CUDA graph).")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on in this run folder from its last checkpoint.")
    ] = None,
    trained_agent: Annotated[
        Path | None,
        typer.Option("-i", "--trained-agent", help="Start from this agent's weights and settings, in a new folder."),
    ] = None,
    trust: Trust = False,
    gym_packages: Packages = None,
    as_json: AsJson = False,
) -> None:
    """Train one agent, with progress, TensorBoard curves, checkpoints and a closing evaluation."""
    from equirl.config import parse_overrides
    from equirl.conversion import start_from, with_overrides
    from equirl.folders import read_settings
    from equirl.runs import settings_of
    from equirl.training import resume as resume_run
    from equirl.training import train as train_run

    if n_timesteps is not None and n_timesteps < 1:
        raise UserError(f"-n {n_timesteps}: expected a whole number of at least 1")
    with quiet_libraries():
        import_modules(gym_packages)
        own = {"method": method, "symmetry": symmetry, "n_timesteps": n_timesteps, "n_envs": n_envs}
        overrides = parse_overrides(hyperparams or [])
        overrides |= {key: value for key, value in own.items() if value is not None}
        start, trusted = None, None if trust else gym_packages or ()
        if resume is not None:
            settings = read_settings(resume, trusted)
            _refuse_changes(ctx, settings)
        elif trained_agent is not None:
            if conf_file is not None:
                raise UserError(f"--conf-file {conf_file} with --trained-agent: expected the agent's own, and -P")
            found = _opened(trained_agent, env, algo, trust, gym_packages)
            settings = replace(with_overrides(found, overrides, seed), device=device)
            start = start_from(found, settings)
        else:
            settings = settings_of(
                "dqn" if algo is None else algo,
                "CartPole-v1" if env is None else env,
                overrides,
                conf_file,
                seed,
                device,
            )
        if compile_steps and (settings.algo, settings.method) != ("dqn", "equitune"):
            raise UserError(f"--compile with {settings.algo} and {settings.method}: expected dqn and equitune")
        use_threads(num_threads if num_threads is not None else -1 if settings.env_id.startswith("ALE/") else 1)
        with without_denormals(), stopped_as_by_ctrl_c():
            if resume is not None:
                result = resume_run(resume, n_timesteps, trusted=trusted, compiled=compile_steps)
            else:
                often = eval_freq, eval_episodes, save_freq
                result = train_run(settings, log_folder, *often, start=start, compiled=compile_steps)
    if as_json:
        return print_json(result)
    print_table(
        f"{result['algorithm']} on {result['environment']}",
        {
            "mean return": f"{result['mean_return']:.2f} +- {result['std_return']:.2f} ({result['episodes']} episodes)",
            "equivariance error": shown(result["equivariance_error"]),
            "method, group": f"{result['method']}, {result['group']}",
            "time": f"{result['seconds']:.0f} s, {result['steps_per_second']:,.0f} steps/s",
            "folder": result["folder"],
            "TensorBoard": command_line("tensorboard", "--logdir", result["folder"]),
        },
    )


@app.command()
def evaluate(
    model: Agent,
    episodes: Annotated[int, typer.Option("--episodes", help="Episodes a method.")] = 20,
    methods: Annotated[
        str | None, typer.Option("--methods", help="all, or names with commas; the trained one if not given.")
    ] = None,
    env: OfEnv = None,
    algo: OfAlgo = None,
    trust: Trust = False,
    gym_packages: Packages = None,
    as_json: AsJson = False,
) -> None:
    """Measure an agent's return under its own method, or under each on the same episodes, and recommend one."""
    from equirl.evaluation import compare_methods, methods_for

    with quiet_libraries():
        found = _opened(model, env, algo, trust, gym_packages)
        trained = found.settings.method
        compared = methods_for(methods or trained, trained)
        with progress_bar() as told:
            result = compare_methods(found, compared, episodes, told)
    if len(found.settings.symmetry.group) == 1 and len(result["methods"]) > 1:
        print_notes([f"no symmetry of {result['environment']} is known: under every method it is the plain network"])
    if as_json:
        return print_json(result)
    table = Table(title=f"{result['environment']}, {result['group']}, {episodes} episodes")
    for column in ("method", "mean return", "95% interval", "equivariance\nerror", "greedy\ndisagreement"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in result["methods"]:
        table.add_row(
            row["method"],
            f"{_number(row['mean_return'])} +- {_number(row['std_return'])}",
            "-" if row["interval"] is None else " .. ".join(map(_number, row["interval"])),
            shown(row["equivariance_error"]),
            f"{row['greedy_disagreement']:.1%}",
        )
    Console().print(table)
    broken = result["plain_greedy_disagreement"]
    print(f"the plain network's greedy action breaks the symmetry in {broken:.1%} of cases")
    print(f"trained: {trained}; recommended: {result['recommended']}")


@app.command()
def enjoy(
    model: Agent,
    episodes: Annotated[int, typer.Option("--episodes", help="Episodes to play.")] = 1,
    video: Annotated[
        Path | None, typer.Option("--video", help="Film into this .gif or .mp4, without a window.")
    ] = None,
    n_timesteps: Annotated[int, typer.Option("-n", "--n-timesteps", help="The most steps in all.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the first episode.")] = 0,
    env: OfEnv = None,
    algo: OfAlgo = None,
    trust: Trust = False,
    gym_packages: Packages = None,
    as_json: AsJson = False,
) -> None:
    """Let an agent play, in a window or on film."""
    from equirl.films import play

    with quiet_libraries():
        found = _opened(model, env, algo, trust, gym_packages)
        result = play(found, episodes, video, n_timesteps, seed)
    if as_json:
        return print_json(result)
    rows = {f"episode {i}": f"{value:.2f}" for i, value in enumerate(result["returns"], 1)}
    if not rows:
        rows = {"episodes": f"none ended within {n_timesteps:,} steps"}
    print_table(result["environment"], rows | ({"video": result["video"]} if result["video"] else {}))


@app.command()
def wrap(
    model: Agent,
    output: Annotated[Path, typer.Option("-o", "--output", help="A free path: a .zip, or a run folder.")],
    method: Annotated[str, typer.Option("--method", help=", ".join(METHODS))],
    symmetry: Annotated[
        str | None, typer.Option("--symmetry", help="A name that is listed; the catalogue's if not given.")
    ] = None,
    env: OfEnv = None,
    algo: OfAlgo = None,
    trust: Trust = False,
    gym_packages: Packages = None,
    as_json: AsJson = False,
) -> None:
    """Make a trained agent equivariant: the same weights, no training."""
    from equirl import conversion

    with quiet_libraries():
        found = _opened(model, env, algo, trust, gym_packages)
        result = conversion.wrap(found, symmetry, method, output)
    if as_json:
        return print_json(result)
    print_table(
        f"{result['algorithm']} on {result['environment']}",
        {
            "method, group": f"{result['method']}, {result['group']}",
            "equivariance error": shown(result["equivariance_error"]),
            "plain network": f"breaks the symmetry in {result['plain_greedy_disagreement']:.1%} of greedy actions",
            "written": result["model"],
            "measure it": command_line("equirl", "evaluate", result["model"], "--methods", "all"),
            "train it further": command_line("equirl", "train", "--trained-agent", result["model"], "-n", "10000"),
        },
    )


for command in (symmetry_commands.symmetries, symmetry_commands.check, symmetry_commands.discover):
    app.command()(command)


def _opened(model: str | Path, env: str | None, algo: str | None, trust: bool, packages: list[str] | None) -> Found:
    """Return the agent that a command names, with the packages of the user imported and the notes on it printed."""
    from equirl.loading import find_agent

    import_modules(packages)
    found = find_agent(model, env, algo, trust, packages or ())
    print_notes(found.notes)
    return found


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"  # a wider table would break lines


def _refuse_changes(ctx: typer.Context, settings: Settings) -> None:
    """Refuse options that say other than what a resumed run has: it goes on as it began."""
    own = {"n_envs": settings.n_envs, **settings.hyperparameters, **settings.extra}
    own |= {"env": settings.env_id, "algo": settings.algo, "seed": settings.seed, "device": settings.device}
    for name, value in ctx.params.items():
        source = ctx.get_parameter_source(name)
        given = source is not None and source.name != "DEFAULT"
        if (
            given
            and name
            not in ("resume", "n_timesteps", "num_threads", "compile_steps", "trust", "gym_packages", "as_json")
            and own.get(name) != value
        ):
            option = name.replace("_", "-")
            raise UserError(
                f"--{option} {value} with --resume: expected -n alone, since the run keeps its {own.get(name, option)}"
            )
