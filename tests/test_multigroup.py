"""Products of groups at n_1 + ... + n_N forwards, and several inputs with a group each."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from equirl import (
    Equitune,
    Grid,
    InvariantSymmetric,
    PerKey,
    Permutation,
    Product,
    SignedPermutation,
    Trivial,
    UserError,
    cyclic,
    dihedral,
    equivariance_error,
    symmetric,
    symmetrize,
)
from equirl.methods import scores_for
from equirl.symmetrizers import Symmetrizer

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
C2, C3, C4, S3 = cyclic(2), cyclic(3), cyclic(4), symmetric(3)
CHANNELS = [list(p) for p in itertools.permutations(range(3))]
TURNS = Grid(C4) * Grid(S3, ["identity"] * 6, CHANNELS)
FLIPS = Grid(C2, ["identity", "flip_x"]) * Grid(C2, ["identity", "flip_y"])
SIGNS = SignedPermutation(C2, [[0, 1, 2, 3]] * 2, [[1] * 4, [-1, -1, 1, 1]])
PAIRS = Permutation(C2, [[0, 1, 2, 3], [1, 0, 3, 2]])
VECTORS = SIGNS * SignedPermutation(C2, PAIRS.indices)
KEYS = PerKey(C2, {"a": Permutation.regular(C2), "b": Trivial(C2)}) * PerKey(
    C3, {"a": Trivial(C3), "b": Permutation.regular(C3)}
)
ACTIONS = Permutation(C2, [[0, 1, 2, 3], [1, 0, 2, 3]]) * Permutation(C2, [[0, 1, 2, 3], [0, 1, 3, 2]])
# input, its shape, output, its size
CASES: dict[str, Any] = {
    "C4xS3 pictures": (TURNS, (3, 5, 5), Permutation.regular(C4) * Permutation(S3, [[0, 1, 2, 3]] * 6), 4),
    "C2xC2 pictures": (FLIPS, (3, 5, 5), ACTIONS, 4),
    "C2xC2 vectors": (VECTORS, (4,), VECTORS, 4),
    "C2xC3 dictionaries": (KEYS, {"a": (2,), "b": (3,)}, Permutation.regular(KEYS.group), 6),
    "D4, one factor": (Grid(dihedral(4)), (3, 5, 5), Permutation.regular(dihedral(4)), 8),
}
FORMS: dict[str, dict[str, Any]] = {
    "sum": {},
    "mixed, first chooses": {"canonicalize": [0]},
    "mixed, last chooses": {"canonicalize": [-1]},
}
PLACED = [(case, form) for case in CASES for form in FORMS if "one" not in case or form == "sum"]


class Net(nn.Module):
    """A network that knows of no group, on tensors or dictionaries."""

    def __init__(self, shape: Any, out: int) -> None:
        super().__init__()
        shapes = shape.values() if isinstance(shape, dict) else [shape]
        size = sum(int(torch.tensor(part).prod()) for part in shapes)
        self.layers = nn.Sequential(nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, out))

    def forward(self, x: Any) -> torch.Tensor:
        parts = x.values() if isinstance(x, dict) else [x]
        return self.layers(torch.cat([part.flatten(1) for part in parts], 1))


def drawn(shape: Any, n: int, dtype: torch.dtype) -> Any:
    if isinstance(shape, dict):
        return {key: torch.randn(n, *part, dtype=dtype) for key, part in shape.items()}
    return torch.randn(n, *shape, dtype=dtype)


def on_all(f: Any, *trees: Any) -> Any:
    if isinstance(trees[0], dict):
        return {key: f(*(tree[key] for tree in trees)) for key in trees[0]}
    return f(*trees)


def made(case: str, form: str = "sum", dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Return the design, a network, and inputs that some elements leave as they are, all of them or some factors."""
    torch.manual_seed(0)
    rep, shape, output, size = CASES[case]
    chosen = dict(FORMS[form])
    if chosen.get("canonicalize") == [-1]:
        chosen["canonicalize"] = [1]
    scores = scores_for(rep, shape, hidden=16)
    design = Product(rep, output, scores, **chosen, **options).to(dtype)
    x = drawn(shape, 6, dtype)
    orbit = rep.orbit(x)
    of_factors = [[int(g) for g in each] for each in design.factors.elements]
    fixed = [on_all(lambda part, each=each: part[each].mean(0), orbit) for each in of_factors]
    points = [x, on_all(lambda part: part.mean(0), orbit), *fixed, on_all(torch.zeros_like, x)]
    return design, Net(shape, size).to(dtype), on_all(lambda *parts: torch.cat(parts), *points)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("case", "form"), PLACED)
def test_it_is_equivariant_at_fixed_points_too_before_and_after_learning(case, form, dtype, mode):
    design, f, x = made(case, form, dtype, prior=0.1)

    def error(h: Any) -> float:
        design.train(mode)
        return equivariance_error(h, design.input, design.output, x)

    assert error(f) > 1e-3
    assert error(partial(design, f)) <= TOLERANCE[dtype]
    learner = torch.optim.SGD([*design.parameters(), *f.parameters()], 0.05)
    design.train()
    for _ in range(4):
        learner.zero_grad()
        y = design(f, x)
        (y - torch.arange(y.shape[1])).square().mean().backward()
        learner.step()
    assert error(partial(design, f)) <= TOLERANCE[dtype]


def best(scores: torch.Tensor) -> list[int]:
    return [i for i in range(len(scores)) if scores[i] >= scores.max() - 1e-10]


def slow(design: Product, f: Any, x: torch.Tensor) -> torch.Tensor:
    """The formulas, one input, one factor and one element at a time."""
    group, factors = design.input.group, [list(each) for each in design.factors.elements]
    rows = []
    for i in range(len(x)):
        one, c = x[i : i + 1], design.scores(x[i : i + 1])[:, 0]
        if design.canonicalize is None:
            parts = [([k], [j for j in range(len(factors)) if j != k]) for k in range(len(factors))]
        else:
            parts = [([j for j in range(len(factors)) if j not in design.canonicalize], list(design.canonicalize))]
        terms = []
        for averaged, choosing in parts:

            def products(places: list[int]) -> list[int]:
                found = [0]
                for place in places:
                    found = [group.product(a, b) for a in found for b in factors[place]]
                return found

            k_elements, h_elements = products(averaged), products(choosing)
            of_h = torch.stack([torch.stack([c[group.product(k, h)] for k in k_elements]).mean() for h in h_elements])
            values = []
            for place in best(of_h):
                h = h_elements[place]
                pose = design.input(group.inverse(h), one)
                views = [design.output(group.inverse(k), f(design.input(k, pose))) for k in k_elements]
                mean = torch.stack(views).mean(0)
                if design.canonicalize is None:
                    mean = torch.stack([design.output(j, mean) for j in h_elements]).mean(0)
                else:
                    mean = design.output(h, mean)
                values.append(mean)
            terms.append(torch.stack(values).mean(0))
        rows.append(torch.stack(terms).mean(0))
    return torch.cat(rows)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("case", "form"), [pair for pair in PLACED if "dictionaries" not in pair[0]])
def test_it_is_its_formula(case, form, mode):
    design, f, x = made(case, form)
    design.train(mode)
    assert torch.allclose(design(f, x), slow(design, f, x), atol=1e-12)


@pytest.mark.parametrize(
    ("case", "form", "count"),
    [
        ("C4xS3 pictures", "sum", 4 + 6),
        ("C4xS3 pictures", "mixed, first chooses", 6),
        ("C4xS3 pictures", "mixed, last chooses", 4),
        ("C2xC2 pictures", "sum", 2 + 2),
        ("C2xC3 dictionaries", "sum", 2 + 3),
        ("D4, one factor", "sum", 8),
    ],
)
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_the_network_is_called_once_with_as_many_views_as_the_sum_of_orders(case, form, count, mode):
    design, f, x = made(case, form)
    seen: list[int] = []
    f.layers.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    design.train(mode)
    design(f, on_all(lambda part: part[:6], x))
    assert seen == [6 * count]
    assert design.forwards == count
    seen.clear()
    Equitune(design.input, design.output)(f, on_all(lambda part: part[:6], x))
    assert seen == [6 * len(design.input.group)]


def test_one_factor_is_the_explicit_average():
    design, f, x = made("D4, one factor")
    assert torch.allclose(design(f, x), Equitune(design.input, design.output)(f, x), atol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if "one" not in case])
@pytest.mark.parametrize("place", [0, 1])
def test_the_mixed_form_is_the_explicit_average_where_f_follows_the_factor_that_chooses(case, place):
    """With f(h x) = h f(x) for the factor that chooses, every pose gives the same: M = mean over the whole product."""
    rep, shape, output, size = CASES[case]
    design = Product(rep, output, scores_for(rep, shape, hidden=16), canonicalize=[place]).double()
    elements = [int(g) for g in design.factors.elements[place]]
    part = rep.group.subgroup(elements)
    half = Equitune(rep.along(part, elements), output.along(part, elements))
    bare, x = Net(shape, size).double(), drawn(shape, 6, torch.float64)
    whole = Equitune(rep, output)
    assert torch.allclose(design(partial(half, bare), x), whole(bare, x), atol=1e-12)
    assert not torch.allclose(design(bare, x), whole(bare, x), atol=1e-3)  # another equivariant function


def test_the_sum_is_the_explicit_average_of_sums_of_functions_of_single_factors():
    """f = f_1 + f_2, each equivariant to one factor and changed by it alone: the terms are these and their means."""
    rep, shape, output, size = CASES["C2xC2 pictures"]
    design = Product(rep, output, scores_for(rep, shape)).double()
    whole, x = Equitune(rep, output), drawn(shape, 6, torch.float64)
    bare = Net(shape, size).double()

    def f(x: torch.Tensor) -> torch.Tensor:
        return whole(bare, x)  # invariant poses and symmetric outputs change nothing beyond the mean over each factor

    y, expected = design(f, x), f(x)
    halves = [torch.stack([output(int(g), expected) for g in each]).mean(0) for each in design.factors.elements]
    assert torch.allclose(y, torch.stack(halves).mean(0), atol=1e-12)


@pytest.mark.parametrize(("case", "form"), PLACED)
def test_weights_are_shares_of_the_views(case, form):
    design, f, x = made(case, form)
    branches = design.eval().branches(f, x)
    weights = design.weights(branches)
    assert weights.shape == branches.outputs.shape[:2]
    assert torch.allclose(weights.sum(0), torch.ones_like(weights[0]))
    if form != "sum":  # there the value is the weighted mean
        value = (weights[..., None] * branches.undone).sum(0)
        assert torch.allclose(value, design(f, x), atol=1e-12)
        assert torch.allclose(Symmetrizer.forward(design, f, x), value, atol=1e-12)


def test_scores_learn_through_the_choice():
    design, f, x = made("C2xC2 pictures")
    design.train()
    design(f, x).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 1e-9 for p in design.scores.parameters())


def test_modules_take_products_by_name():
    torch.manual_seed(0)
    net = symmetrize(nn.Conv2d(3, 3, 3, padding=1), method="product", input=FLIPS, output=FLIPS, shape=(3, 8, 8))
    assert equivariance_error(net.eval(), FLIPS, FLIPS, torch.rand(2, 3, 8, 8)) <= 1e-5


# Several inputs


REPS: dict[str, Any] = {
    "eye": (Grid(C4), (2, 5, 5), Permutation.regular(C4), 4),
    "arm.left": (SIGNS, (4,), SIGNS, 4),
    "task": (Permutation.regular(C3), (3,), Trivial(C3), 2),
}


def layer(dtype: torch.dtype = torch.float64) -> InvariantSymmetric:
    torch.manual_seed(0)
    inputs, outputs = ({name: each[place] for name, each in REPS.items()} for place in (0, 2))
    own = {name: Net(shape, size) for name, (_, shape, _, size) in REPS.items()}
    fused = {i: {j: Net(REPS[j][1], REPS[i][3]) for j in REPS if j != i} for i in REPS}
    return InvariantSymmetric(inputs, outputs, own, fused).to(dtype)


def inputs_of_all(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    x = {name: drawn(shape, 3, dtype) for name, (_, shape, _, _) in REPS.items()}
    fixed = {name: REPS[name][0].orbit(part).mean(0) for name, part in x.items()}
    return {name: torch.cat([part, fixed[name], torch.zeros_like(part)]) for name, part in x.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_each_output_follows_its_own_group_and_no_other(dtype):
    net, x = layer(dtype), inputs_of_all(dtype)
    y = net(x)
    for name, (rep, _, output, _) in REPS.items():
        for g in range(len(rep.group)):
            moved = net({**x, name: rep(g, x[name])})
            for other in REPS:
                expected = output(g, y[name]) if other == name else y[other]
                assert torch.allclose(moved[other], expected, atol=TOLERANCE[dtype])


def test_each_output_reads_every_input():
    net, x = layer(), inputs_of_all()
    y = net(x)
    for name in REPS:
        changed = net({**x, name: x[name] + 0.3 * torch.randn_like(x[name])})
        assert all(not torch.allclose(changed[other], y[other], atol=1e-4) for other in REPS)


def test_fusion_costs_the_sum_of_orders():
    net, x = layer(), inputs_of_all()
    counts: list[int] = []
    for part in net.modules():
        if isinstance(part, Net):
            part.register_forward_hook(lambda _, __, y: counts.append(len(y)))
    net(x)
    assert sorted(counts) == sorted(9 * len(REPS[j][0].group) for _ in REPS for j in REPS)


def test_an_output_of_a_name_may_read_nothing_else():
    rep = {"a": Permutation.regular(C2)}
    net = InvariantSymmetric(rep, rep, {"a": nn.Linear(2, 2)}, {"a": {}})
    x = torch.rand(3, 2)
    assert torch.allclose(net({"a": x})["a"], Equitune(rep["a"], rep["a"])(net.own[0], x))


SWAP = Permutation.regular(C2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: made("C2xC2 pictures", canonicalize=[2]), "canonicalize [2]: expected places of factors, from 0 to 1"),
        (lambda: made("C2xC2 pictures", canonicalize=[0, 0]), "canonicalize [0, 0]"),
        (lambda: made("C2xC2 pictures", factors=[[0, 1]]), "factors of orders (2,)"),
        (lambda: made("C2xC2 pictures", prior=-1), "prior -1"),
        (lambda: Grid(C4) * Grid(C2, ["identity", "flip_x"]), "do not commute"),
        (
            lambda: symmetrize(nn.Identity(), method="product", input=FLIPS, output=FLIPS),
            "method 'product' without scores or shape",
        ),
        (lambda: InvariantSymmetric({"a": SWAP}, {}, {}, {}), "outputs of []: expected those of the inputs, a"),
        (lambda: InvariantSymmetric({"a": SWAP}, {"a": SWAP}, {}, {"a": {}}), "networks of []"),
        (
            lambda: InvariantSymmetric(
                *({"a": SWAP, "b": SWAP},) * 2, dict.fromkeys("ab", nn.Identity()), {"a": {"a": nn.Identity()}, "b": {}}
            ),
            "unknown input fused into a 'a'",
        ),
        (
            lambda: InvariantSymmetric({"a": SWAP}, {"a": Trivial(C3)}, {"a": nn.Identity()}, {"a": {}}),
            "expected one group",
        ),
        (lambda: layer()({"eye": torch.zeros(1)}), "inputs ['eye']: expected eye, arm.left, task"),
    ],
)
def test_mistakes_are_told_in_one_line(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
