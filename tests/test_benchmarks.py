"""The benchmark of speed and memory runs whole, and its ratios are what it says; nothing here depends on time."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from equirl import equivariance_error
from tests.benchmarks import learning, run
from tests.benchmarks.speed.arms import ARMS, PLAIN, Agent, UnavailableError
from tests.benchmarks.speed.cases import make_cases
from tests.benchmarks.speed.goals import AT_LEAST, AT_MOST, GOALS, MEMORY, Goal
from tests.benchmarks.speed.measures import (
    CPU,
    WALL,
    Settings,
    flops,
    highest,
    interleaved,
    measure_names,
    peak_bytes,
)
from tests.benchmarks.speed.others import library
from tests.benchmarks.speed.ratios import of_bound, short, spread, times_faster
from tests.benchmarks.speed.report import Shown, goals, markdown, missed, tables

CASES = make_cases()
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch's, by its inductor
GROUPED = [(case, group) for case in CASES for group in CASES[case].groups]


def agent(case: str, group: str, arm: str) -> Agent:
    return ARMS[arm].make(CASES[case], CASES[case].groups[group](), "cpu", True)


def observed(case: str, batch: int) -> torch.Tensor:
    shape, top = {"CartPole": ((4,), 1), "GridWorld": ((3, 9, 9), 256), "Pong-shaped": ((4, 84, 84), 256)}[case]
    drawn = np.random.default_rng(1)
    if top == 1:
        return torch.as_tensor(drawn.normal(size=(batch, *shape)).astype(np.float32))
    return torch.as_tensor(drawn.integers(0, top, (batch, *shape), np.uint8))


def row(arm: str = "equitune", group: str = "C4", order: int = 4, **samples: list[float]) -> dict[str, Any]:
    taken = {name.replace("_", " "): {WALL: each, CPU: [order * x for x in each]} for name, each in samples.items()}
    found = {"device": "cpu", "case": "GridWorld", "network": "net", "group": group, "arm": arm, "order": order}
    return found | {"samples": taken, "parameters": 10, "flops": 100, "peak_bytes": 1000}


@pytest.mark.usefixtures("traced")  # nothing is timed here
def test_quick_run_has_a_row_or_a_reason_for_every_arm_of_every_case(tmp_path, capsys):
    run.main(["--quick", "--out", str(tmp_path / "new")])
    found = json.loads((tmp_path / "new" / "benchmarks.json").read_text(encoding="utf-8"))
    rows = {(each["case"], each["group"], each["arm"]): each for each in found["rows"] if each["device"] == "cpu"}
    assert set(rows) == {(c.name, *pair) for c in CASES.values() for pair in run.wanted(c, list(ARMS))}
    assert {arm for _, _, arm in rows} == set(ARMS)
    names, repeat = measure_names(found["settings"]["batches"]), found["settings"]["repeat"]
    for key, each in rows.items():
        if "reason" in each:
            others = ("SBX", "escnn", "equiadapt", "compiled")  # ours always run, given a compiler
            assert key[2] in others, each["reason"]
            assert each["reason"]
            continue
        assert list(each["samples"]) == names
        for samples in each["samples"].values():
            assert [len(samples[clock]) for clock in (WALL, CPU)] == [repeat, repeat]
            assert min(samples[WALL]) > 0
    assert {each["order"] for each in found["rows"]} == {1, 2, 4, 8}
    assert {"cpu", "cores", "threads", "python", "torch", "stable-baselines3"} <= set(found["machine"])
    page = (tmp_path / "new" / "benchmarks.md").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    for text in (page, out):
        assert "CartPole (MLP 256x256) on cpu: rates, plain = 1, more is better" in text
        assert all(goal.name.split(",")[0] in text for goal in GOALS)
    assert page.count("| C4 equitune |") == 10  # five tables of two cases
    assert [each["title"] for each in found["tables"]][-1].startswith("goals")


def test_one_case_and_arm_keep_plain_beside_them(tmp_path, capsys):
    run.main(["--quick", "--case", "CartPole", "--arm", "loop", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))
    assert [(each["group"], each["arm"]) for each in found["rows"]] == [("", PLAIN), ("C1", "loop"), ("C2", "loop")]


@pytest.mark.parametrize(
    "wrong", [["--repeat", "0"], ["--threads", "0"], ["--batch", "0"], ["--case", "Chess"], ["--arm", "magic"]]
)
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as left:
        run.main(wrong)
    assert left.value.code == 2
    assert wrong[1] in capsys.readouterr().err


@pytest.mark.parametrize(("case", "group"), GROUPED)
def test_the_loop_computes_what_equitune_does(case, group):
    ours, loop = agent(case, group, "equitune"), agent(case, group, "loop")
    loop.model.q_net.load_state_dict(ours.model.q_net.state_dict())
    ours.model.policy.set_training_mode(False)
    x = observed(case, 5)
    expected = ours.net(x)
    torch.testing.assert_close(loop.net(x), expected, rtol=0, atol=1e-5)
    symmetry = CASES[case].groups[group]()
    net = loop.model.q_net
    assert equivariance_error(net, symmetry.observation, symmetry.action, x) <= 1e-5
    assert float(expected.std()) > 1e-3  # not the constant that would agree with anything


def test_the_loop_takes_a_forward_an_element_and_learns():
    loop = agent("GridWorld", "D4", "loop")
    assert flops(loop) == 8 * flops(agent("GridWorld", "D4", PLAIN))
    before = [p.clone() for p in loop.model.q_net.parameters()]
    loop.learn(8)
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.model.q_net.parameters(), strict=True))


def test_arms_differ_in_what_their_names_say():
    plain, fused = (agent("CartPole", "C2", arm) for arm in (PLAIN, "plain, fused Adam"))
    assert not plain.model.policy.optimizer.defaults["fused"]
    assert fused.model.policy.optimizer.defaults["fused"]
    assert agent("CartPole", "C2", "orbit_samples=1").model.q_net.symmetrizer.orbit_samples == 1
    assert agent("CartPole", "C2", "native").parameters < plain.parameters
    assert agent("CartPole", "C2", "equizero").parameters == plain.parameters == fused.parameters
    methods = [agent("CartPole", "C2", arm).model.policy.method for arm in ("equitune", "equizero", "lambda", "native")]
    assert methods == ["equitune", "equizero", "lambda", "native"]


def test_all_arms_of_a_case_share_their_settings():
    keys = ("batch_size", "gamma", "train_freq", "gradient_steps", "n_steps", "max_grad_norm", "target_update_interval")
    for case in CASES:
        settings = [[getattr(agent(case, "C2", arm).model, key) for key in keys] for arm in (PLAIN, "loop", "equitune")]
        assert settings[0] == settings[1] == settings[2]
    shipped = CASES["CartPole"].algorithm(quick=False)
    assert (shipped["train_freq"], shipped["gradient_steps"], shipped["batch_size"]) == (256, 128, 64)
    assert shipped["exploration_initial_eps"] == shipped["exploration_final_eps"] == 0.04


def test_ratios_are_of_the_same_repetition():
    found = spread([2.0, 3.0, 40.0], [1.0, 2.0, 10.0])
    assert found == (2.0, 1.5, 4.0)
    assert times_faster([2.0, 3.0, 40.0], [1.0, 2.0, 10.0]) == (0.5, 0.25, 1 / 1.5)
    assert str(found) == "2.00 1.50-4.00"
    assert of_bound(found.median, 8) == 0.25
    assert [short(x) for x in (0.0, 9.99, 9.996, 99.94, 99.96)] == ["0.00", "9.99", "10.0", "99.9", "100"]
    with pytest.raises(ValueError, match="2 samples against 1"):
        spread([1.0, 2.0], [1.0])


def test_the_peak_is_the_highest_sum():
    assert highest([100, -60, 50, -90]) == 100
    assert highest([-30, 10]) == 0  # below what was there before
    assert highest([]) == 0


def test_the_peak_of_an_update_counts_gradients_and_grows_with_the_batch():
    plain = agent("CartPole", "C2", "plain, fused Adam")
    run.filled_buffer(plain)
    small, large = (peak_bytes(plain, batch, "cpu") for batch in (1, 64))
    assert small >= 4 * plain.parameters  # the gradients
    assert large - small >= 63 * 4 * (256 + 256)  # the activations


def _take(taken: list[str], name: str, calls: int) -> None:
    taken.append(name)


def test_arms_take_turns():
    taken: list[str] = []
    settings = Settings(repeat=3, seconds=0.0)
    arms: dict[Any, Any] = {name: (partial(_take, taken, name), 1) for name in "abc"}
    found = interleaved(arms, settings, lambda _: None)
    rounds = ["".join(taken[i : i + 3]) for i in range(0, 12, 3)]
    assert rounds == ["abc", "abc", "bca", "cab"]  # the first warms up
    assert {name: len(each[WALL]) for name, each in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_tables_show_the_documented_ratios():
    plain = row(PLAIN, "", 1, learn=[1.0, 1.0, 1.0], update_2=[1.0] * 3, forward_2=[0.5] * 3)
    ours = row(learn=[2.0, 4.0, 1.0], update_2=[3.0] * 3, forward_2=[1.0] * 3)
    for each in (plain, ours):
        each["samples"] |= dict.fromkeys(("predict", "net 1"), each["samples"]["forward 2"])
    ours |= {"parameters": 20, "flops": None, "peak_bytes": 3000}
    lost = row("escnn") | {"reason": "not installed"}
    found = {"rows": [plain, ours, lost], "settings": {"batches": [2], "memory_batch": 128}}
    why, rates, times, cpu, bound, size, missing, _ = tables(found)
    assert [line[:2] for line in why.rows] == [("GridWorld C4 equitune, learn", "cpu")]
    assert rates.rows == [("plain", "1/s", "1/s"), ("C4 equitune", "0.50 0.25-1.00", "0.33 0.33-0.33")]
    assert times.rows[0] == ("plain", "500 ms", "500 ms", "500 ms")
    assert times.rows[1] == ("C4 equitune", *["2.00 2.00-2.00"] * 3)
    assert cpu.rows[1] == ("C4 equitune", "8.00", "12.0", "8.00", "8.00", "8.00")
    assert bound.rows[1] == ("C4 equitune", "0.50", "0.75", "0.50", "0.50", "0.50")
    assert size.rows[1] == ("C4 equitune", "20 (2.00)", "-", "0.0 MiB (3.00)")
    assert missing.rows == [("cpu", "GridWorld", "C4 escnn", "not installed")]


def test_goals_are_judged_by_the_median():
    forward, update = [1.0, 1.0, 1.0], [3.0, 1.0, 2.0]
    ours, loop = row(forward_32=forward, update_32=update), row("loop", forward_32=[2.0] * 3, update_32=[2.5, 4.0, 7.0])
    plain = row(PLAIN, "", 1, forward_32=[0.5] * 3, update_32=[0.5] * 3) | {"peak_bytes": 200}
    rows = [plain, ours, loop, row("native") | {"reason": "no such net"}]
    both = Goal("GridWorld", "C4", "equitune", ("forward 32", "update 32"), AT_LEAST, 3.0, against="loop")
    assert both.measured(rows, "cpu") == (3.0, 4.5 / 4, 3.0)
    assert both.verdict(both.measured(rows, "cpu")) == "met"
    time = Goal("GridWorld", "C4", "equitune", ("update 32",), AT_MOST, 3.9)
    assert time.measured(rows, "cpu") == (4.0, 2.0, 6.0)
    assert time.verdict(time.measured(rows, "cpu")) == "missed"
    assert time.target == "at most 3.9"
    memory = Goal("GridWorld", "C4", "equitune", (MEMORY,), AT_MOST, 5)
    assert memory.verdict(memory.measured(rows, "cpu")) == "met"
    for arm, said in (("native", "no such net"), ("compiled", "not in this run")):
        lost = Goal("GridWorld", "C4", arm, ("update 32",), AT_MOST, 1.0)
        assert lost.measured(rows, "cpu") == said
        assert lost.verdict(said) == "not measured"
    assert Goal("GridWorld", "C4", "equitune", ("learn",), AT_LEAST, 1.0).measured(rows, "cpu") == "not in this run"
    assert both.measured(rows, "cuda") == "not in this run"


def test_the_table_of_goals_names_each_and_has_a_column_a_device():
    one = row()
    shown = goals([one, one | {"device": "cuda"}])
    assert shown.columns == ("goal", "target", "on cpu", "", "on cuda", "")
    assert len(shown.rows) == len(GOALS)
    assert shown.rows[0] == ("CartPole C2 equitune, learn", "at least 1.2", *["not in this run", "not measured"] * 2)


def test_goals_that_are_missed_say_why():
    stored = json.loads((run.FOLDER / "benchmarks.json").read_text(encoding="utf-8"))
    lines = goals(stored["rows"]).rows
    assert {line[0] for line in lines if line[-1] == "missed"} == {row[0] for row in missed(stored["rows"])[0].rows}
    assert all(because for *_, because in missed(stored["rows"])[0].rows)
    assert missed([]) == []


def test_markdown_has_the_goals_first():
    page = markdown([Shown("first", ("", "b"), [("x|y", "1")]), Shown("goals", ("goal",), [("g",)])], {"cpu": "c"})
    assert page.index("## goals") < page.index("## first")
    assert "| x&#124;y | 1 |" in page
    assert "cpu c." in page


def test_missing_libraries_are_reasons(tmp_path, monkeypatch):
    (tmp_path / "sbx.py").write_text("raise AttributeError('no such\\nthing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnavailableError, match=r"^does not import: AttributeError: no such$"):
        library("sbx")
    (tmp_path / "sbx.py").write_text("import no_such_library")
    with pytest.raises(UnavailableError, match=r"^does not import: No module named 'no_such_library'$"):
        library("sbx")
    monkeypatch.setitem(library.__globals__["INSTALL"], "no_such_library", "pip install it")
    with pytest.raises(UnavailableError, match=r"^not installed: pip install it$"):
        library("no_such_library")


@pytest.mark.parametrize("name", [name for name in learning.STUDIES if (learning.HERE / f"{name}.csv").is_file()])
def test_the_page_of_a_study_is_the_committed_one(name):
    rows = learning.stored_in(learning.HERE / f"{name}.csv")
    assert {row["arm"] for row in rows} <= set(learning.STUDIES[name].arms)
    assert learning.page(learning.STUDIES[name], rows) == (learning.HERE / f"{name}.md").read_text(encoding="utf-8")
    assert learning.same_run(rows[0], {**rows[0], "seed": int(rows[0]["seed"])})
    assert not any(learning.same_run(rows[0], other) for other in rows[1:])


def test_an_arm_of_one_seed_has_no_interval():
    row = {"arm": "identity", "seed": "21", "return": "0.5", "area": "0.1", "seconds": "60"}
    assert learning.cells("identity", [row], -0.5) == ("identity", "0.50", "-", "0.10", "60", "1.00", "0.50")
