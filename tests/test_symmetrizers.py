"""Every method is exactly equivariant, over every group and representation, at random inputs and at fixed points."""

import copy
import itertools
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from equirl import (
    METHODS,
    Equitune,
    Equizero,
    Grid,
    Identity,
    LambdaEquitune,
    Matrix,
    PerKey,
    Permutation,
    SignedPermutation,
    Symmetrizer,
    Tokens,
    Trivial,
    UserError,
    cyclic,
    equivariance_error,
    group_named,
    make_symmetrizer,
    symmetrize,
)
from equirl.symmetrizers import SCORES, Branches

MAPS = {
    "C2": ("identity", "flip_x"),
    "C4": ("identity", "rot90", "rot180", "rot270"),
    "D4": ("identity", "rot90", "rot180", "rot270", "flip_x", "transpose", "flip_y", "antitranspose"),
    "C2xC2": ("identity", "flip_y", "flip_x", "rot180"),
    "C3": ("identity",) * 3,
    "S3": ("identity", "flip_x", "flip_x", "identity", "identity", "flip_x"),
}
GROUPS = {name: group_named(name) for name in MAPS}
SIDE, WIDTH = 4, 8
RUNS = ((torch.float32, 1e-5, False), (torch.float32, 1e-5, True), (torch.float64, 1e-12, False))


def signed(group):
    """Return the group on itself with the signs of its permutations, and of a coordinate that counts downwards."""
    parity = [
        (-1) ** sum(row[i] > row[j] for i, j in itertools.combinations(range(len(row)), 2)) for row in group.table
    ]
    gauge = np.where(np.arange(len(group)) == 2, -1, 1)
    signs = [sign * gauge * gauge[row] for sign, row in zip(parity, group.table, strict=True)]
    return SignedPermutation(group, group.table, signs)


def matrix(group):
    """Return the group on itself in a skew basis."""
    basis = np.eye(len(group)) + 0.3 * np.random.default_rng(0).random((len(group), len(group)))
    return Matrix(group, [basis @ np.eye(len(group))[:, row] @ np.linalg.inv(basis) for row in group.table])


def padded(group):
    """Return the group on itself and one thing more, which stays."""
    return np.concatenate([group.table, np.full((len(group), 1), len(group))], axis=1)


def inputs(group):
    """Return name -> (representation, shape of a sample)."""
    n, maps = len(group), MAPS[group.name]
    still = set(maps) == {"identity"}  # then the channels move instead
    square = {"rot90", "transpose"} & set(maps)
    return {
        "permutation": (Permutation.regular(group), (n,)),
        "signed": (signed(group), (n,)),
        "matrix": (matrix(group), (n,)),
        "grid": (Grid(group, maps, group.table if still else None), (n if still else 2, SIDE, SIDE)),
        "gauges": (
            Grid(group, maps, padded(group), fixed=[n], shift=(0, 0) if square else (1, -1), layout="HWC"),
            (SIDE, SIDE, n + 1),
        ),
        "tokens": (Tokens(group, padded(group)), (5,)),
        "keys": (
            PerKey(group, {"speed": signed(group), "eye": Grid(group, maps), "time": Trivial(group)}),
            {"speed": (n,), "eye": (1, SIDE, SIDE), "time": (1,)},
        ),
    }


def outputs(group):
    n = len(group)
    return {
        "trivial": (Trivial(group), (3,)),
        "permutation": (Permutation.regular(group), (n,)),
        "quantiles": (Permutation(group, padded(group)), (2, n + 1)),
        "signed": (signed(group), (n,)),
        "matrix": (matrix(group), (n,)),
        "keys": (PerKey(group, {"a": Permutation.regular(group), "b": Trivial(group)}), {"a": (n,), "b": (1,)}),
    }


def ends(group):
    """Return name -> (input, its shape, output, its shape) for every pair that makes sense."""
    cells = {
        f"{source} to {target}": (*inputs(group)[source], *outputs(group)[target])
        for source in inputs(group)
        for target in outputs(group)
    }
    tokens, grid = inputs(group)["tokens"], inputs(group)["grid"]
    cells["tokens to logits"] = (*tokens, tokens[0].logits, (tokens[0].logits.size,))
    cells["grid to grid"] = (*grid, *grid)
    return cells


CELLS = {f"{name}, {ends_}": cell for name in GROUPS for ends_, cell in ends(GROUPS[name]).items()}


class Net(nn.Module):
    """A small random network that knows nothing of groups; convolutional from pictures to pictures."""

    def __init__(self, rep, shape, out, with_features):
        super().__init__()
        self.rep, self.out, self.with_features = rep, out, with_features
        self.pictures = isinstance(out, tuple) and len(out) == 3
        self.keys = out if isinstance(out, dict) else {"y": out}
        if self.pictures:
            self.hidden: nn.Module = nn.Conv2d(shape[0], WIDTH, 3, padding=1)
            self.last = nn.ModuleDict({"y": nn.Conv2d(WIDTH, out[0], 3, padding=1)})
        else:
            shapes = shape.values() if isinstance(shape, dict) else [shape]
            size = sum(int(np.prod(part)) for part in shapes) * (rep.logits.size if isinstance(rep, Tokens) else 1)
            self.hidden = nn.Linear(size, WIDTH)
            self.last = nn.ModuleDict({key: nn.Linear(WIDTH, int(np.prod(part))) for key, part in self.keys.items()})
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x):
        dtype = next(self.parameters()).dtype
        if isinstance(self.rep, Tokens):
            x = nn.functional.one_hot(x, self.rep.logits.size)
        if not self.pictures:
            x = torch.cat([part.flatten(1) for part in (x.values() if isinstance(x, dict) else [x])], 1)
        features = self.hidden(x.to(dtype)).tanh()
        y = {key: last(features) for key, last in self.last.items()}
        y = {key: part if self.pictures else part.unflatten(1, self.keys[key]) for key, part in y.items()}
        y = y if isinstance(self.out, dict) else y["y"]
        return (y, features.flatten(1)) if self.with_features else y


def methods(rep, shape, out, size):
    """Return name -> (symmetrizer, whether it wants features), trained ones with random weights."""
    found: dict[str, tuple[Symmetrizer, bool]] = {"equitune": (Equitune(rep, out), False)}
    if isinstance(size, dict):
        found["equizero by a function"] = (Equizero(rep, out, score=lambda y: y["a"].amax(-1)), False)
    else:
        found.update({f"equizero by {score}": (Equizero(rep, out, score=score), False) for score in SCORES})
    width = WIDTH * SIDE**2 if isinstance(out, Grid) else WIDTH
    found["lambda of features"] = (LambdaEquitune(rep, out, features_dim=width, hidden=8), True)
    if not isinstance(shape, dict):
        views = LambdaEquitune(rep, out, features_dim=int(np.prod(shape)), hidden=8)
        found["lambda of views"] = (views, False)
    for symmetrizer, _ in found.values():
        for parameter in symmetrizer.parameters():
            nn.init.normal_(parameter, std=0.5)
    return found


def batch_of(rep, shape, size):
    if isinstance(shape, dict):
        return {key: batch_of(rep.keys[key], part, size) for key, part in shape.items()}
    if isinstance(rep, Tokens):
        return torch.randint(0, rep.logits.size, (size, *shape))
    return torch.randn(size, *shape, dtype=torch.float64)


def fixed_points(rep, shape):
    """Return inputs that all elements leave as they are, and inputs that some do: exactly, or up to rounding."""
    if isinstance(shape, dict):
        parts = {key: fixed_points(rep.keys[key], part) for key, part in shape.items()}
        return {key: part[: min(map(len, parts.values()))] for key, part in parts.items()}
    if isinstance(rep, Tokens):
        return torch.full((1, *shape), rep.logits.size - 1)
    zero, group = torch.zeros(1, *shape, dtype=torch.float64), rep.group
    x = batch_of(rep, shape, 1)
    found = [zero, rep.orbit(x).mean(0)]
    if isinstance(rep, Permutation | Grid | Trivial):
        found.append(zero + 0.7)
        found.append(rep.orbit(x).amax(0))  # symmetric to the last bit
    for g in range(1, len(group)):
        powers = itertools.accumulate([g] * group.element_order(g), group.product)
        found.append(torch.stack([rep(power, x) for power in powers]).mean(0))
    return torch.cat(found)


def to(tree, dtype):
    if isinstance(tree, dict):
        return {key: to(part, dtype) for key, part in tree.items()}
    return tree.to(dtype) if tree.is_floating_point() else tree


def joined(first, second):
    if isinstance(first, dict):
        return {key: joined(first[key], second[key]) for key in first}
    return torch.cat([first, second])


def slices(tree, rows):
    return {key: slices(part, rows) for key, part in tree.items()} if isinstance(tree, dict) else tree[rows]


def assert_equal(x, y):
    torch.testing.assert_close(x, y, rtol=0, atol=0)


def assert_close(x, y, tolerance):
    torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


# Equivariance, cell by cell


@pytest.mark.parametrize(("rep", "shape", "out", "size"), CELLS.values(), ids=CELLS)
def test_every_method_is_equivariant_and_the_bare_network_is_not(rep, shape, out, size):
    points = joined(batch_of(rep, shape, 5), fixed_points(rep, shape))
    for name, (symmetrizer, with_features) in methods(rep, shape, out, size).items():
        net = Net(rep, shape, size, with_features)
        bare = equivariance_error(partial(Identity(rep, out), net), rep, out, to(points, torch.float32))
        assert bare > 1e-3, f"{name}: the bare network is equivariant already, to {bare:.1e}"
        for dtype, bound, training in RUNS:
            net.to(dtype)
            symmetrizer.to(dtype).train(training)
            error = equivariance_error(partial(symmetrizer, net), rep, out, to(points, dtype))
            assert error <= bound, f"{name}, {dtype}, training={training}: {error:.1e}"


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
@pytest.mark.parametrize("name", GROUPS)
def test_every_method_is_equivariant_at_every_batch_size(name, batch):
    cell = CELLS[f"{name}, grid to quantiles"]
    rep, shape, out, size = cell
    x = to(batch_of(rep, shape, batch), torch.float32)
    for method, (symmetrizer, with_features) in methods(*cell).items():
        net = Net(rep, shape, size, with_features)
        assert equivariance_error(partial(symmetrizer, net), rep, out, x) <= 1e-5, method
        assert_close(symmetrizer(net, x)[-1:], symmetrizer(net, x[-1:]), 1e-5)


# A slow reference: the formulas, one element and one sample at a time


@torch.no_grad()
def slowly(symmetrizer, net, x):
    """Return f_G(x) for a batch of one, in plain Python."""
    rep, out, group = symmetrizer.input, symmetrizer.output, symmetrizer.input.group
    undone, scores = [], []
    for g in range(len(group)):
        view = rep(g, x)
        y = net(view)
        y, features = y if isinstance(y, tuple) else (y, view)
        undone.append(out(group.inverse(g), y))
        if isinstance(symmetrizer, Equizero):
            scores.append(float(symmetrizer.score(slices(y, None) if isinstance(y, dict) else y[None])))
        elif isinstance(symmetrizer, LambdaEquitune):
            flat = features.flatten(1).to(next(symmetrizer.parameters()).dtype)
            scores.append(float(symmetrizer.score(flat).exp()))
        else:
            scores.append(1.0)
    if isinstance(symmetrizer, Equizero):
        tie = 1024 * torch.finfo(next(net.parameters()).dtype).eps * max(1.0, abs(max(scores)))
        scores = [float(score >= max(scores) - tie) for score in scores]

    def average(parts):
        return sum(score * part for score, part in zip(scores, parts, strict=True)) / sum(scores)

    return {key: average([y[key] for y in undone]) for key in undone[0]} if isinstance(y, dict) else average(undone)


SLOW = [
    f"{name}, {ends_}" for name in GROUPS for ends_ in ("signed to permutation", "grid to grid", "tokens to logits")
]
SLOW += [f"{name}, keys to keys" for name in GROUPS]


@pytest.mark.parametrize("cell", SLOW)
def test_every_method_is_its_formula(cell):
    rep, shape, _, size = CELLS[cell]
    points = joined(batch_of(rep, shape, 3), fixed_points(rep, shape))
    for symmetrizer, with_features in methods(*CELLS[cell]).values():
        net = Net(rep, shape, size, with_features).double()
        for training in (False, True):
            symmetrizer.double().train(training)
            y = symmetrizer(net, points)
            for row in range(len(next(iter(points.values())) if isinstance(points, dict) else points)):
                one = slice(row, row + 1)
                expected = slowly(symmetrizer, net, slices(points, one))
                assert_close(slices(y, one), expected, 1e-12)


@pytest.mark.parametrize("method", ["equitune", "equizero by max", "lambda of features", "lambda of views"])
@pytest.mark.parametrize("name", GROUPS)
def test_weights_sum_to_one_and_follow_the_orbit(name, method):
    """w_{g h^-1}(h x) == w_g(x), which makes the weighted average equivariant."""
    cell = CELLS[f"{name}, signed to permutation"]
    rep, shape, _, size = cell
    symmetrizer, with_features = methods(*cell)[method]
    net, x = Net(rep, shape, size, with_features).double(), batch_of(rep, shape, 4)
    weights = symmetrizer.double().weights(symmetrizer.branches(net, x))
    assert weights.shape == (len(rep.group), 4)
    assert_close(weights.sum(0), torch.ones(4).double(), 1e-12)
    for h in range(len(rep.group)):
        moved = symmetrizer.weights(symmetrizer.branches(net, rep(h, x)))
        sent = [rep.group.product(g, rep.group.inverse(h)) for g in range(len(rep.group))]
        assert_close(moved[sent], weights, 1e-12)


@pytest.mark.parametrize("cell", ["D4, grid to permutation", "S3, keys to keys", "C4, tokens to logits"])
def test_the_network_is_called_once_with_all_views(cell):
    rep, shape, out, size = CELLS[cell]
    x = to(batch_of(rep, shape, 3), torch.float32)
    for name, (symmetrizer, with_features) in methods(*CELLS[cell]).items():
        net = Net(rep, shape, size, with_features)
        seen: list[Any] = []
        net.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        for training in (False, True):
            seen.clear()
            symmetrizer.train(training)(net, x)
            assert len(seen) == 1, name
            views = next(iter(seen[0].values())) if isinstance(seen[0], dict) else seen[0]
            assert len(views) == 3 * len(rep.group), name
        seen.clear()
        Identity(rep, out)(net, x)
        assert len(seen) == 1
        assert len(next(iter(seen[0].values())) if isinstance(seen[0], dict) else seen[0]) == 3


# Each method by itself

C2 = cyclic(2)
SWAP = Permutation(C2, [[0, 1], [1, 0]])
X = torch.tensor([[1.0, 10.0]])


def times(*factors):
    return lambda x: x * torch.tensor(factors)


@pytest.mark.parametrize(
    "name", ["C4, signed to permutation", "C4, grid to quantiles", "C4, matrix to matrix", "C4, keys to keys"]
)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_orbit_samples_are_means_over_subsets_each_as_likely(name, k):
    rep, shape, out, size = CELLS[name]
    net, count = Net(rep, shape, size, False).double(), 1200
    x = batch_of(rep, shape, 1)
    many = (
        {key: part.expand(count, *part.shape[1:]) for key, part in x.items()}
        if isinstance(x, dict)
        else (x.expand(count, *x.shape[1:]))
    )
    undone = Equitune(rep, out).branches(net, x).undone
    first = (lambda tree: next(iter(tree.values()))) if isinstance(undone, dict) else (lambda tree: tree)
    subsets = list(itertools.combinations(range(4), k))
    means = torch.stack([first(undone)[list(chosen), 0].mean(0) for chosen in subsets]).detach()
    drawn = first(Equitune(rep, out, orbit_samples=k).train()(net, many)).detach()
    which = (drawn[:, None] - means[None]).flatten(2).abs().amax(-1)
    assert float(which.amin(1).max()) < 1e-12  # no view twice, each undone by its own inverse
    counts = torch.bincount(which.argmin(1), minlength=len(subsets))
    expected = count / len(subsets)
    assert float((counts - expected).abs().max()) < 5 * expected**0.5


def test_orbit_samples_act_exactly_and_learn_by_fewer_forwards():
    rep, shape, out, size = CELLS["C4, grid to permutation"]
    net, x, seen = Net(rep, shape, size, False).double(), batch_of(rep, shape, 3), []

    def counted(views):
        seen.append(len(views))
        return net(views)

    symmetrizer = Equitune(rep, out, orbit_samples=2)
    assert_equal(symmetrizer.eval()(counted, x), Equitune(rep, out)(net, x))
    symmetrizer.train()(counted, x).sum().backward()
    assert seen == [12, 6]
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert (Equitune(rep, out).reads_mode, symmetrizer.reads_mode) == (False, True)
    assert symmetrizer.state_dict() == {}


def test_identity_is_the_function_itself():
    plain = Identity(SWAP, SWAP)
    assert plain(times(1.0, 3.0), X).tolist() == [[1.0, 30.0]]
    assert plain(lambda x: (x + 1, "features"), X).tolist() == [[2.0, 11.0]]
    assert plain.weights(plain.branches(times(1.0, 3.0), X)).tolist() == [[1.0], [0.0]]


def test_equitune_by_hand():
    """g x = (10, 1) -> (10, 3) -> back (3, 10); with (1, 30) the mean is (2, 20)."""
    assert Equitune(SWAP, SWAP)(times(1.0, 3.0), X).tolist() == [[2.0, 20.0]]
    assert Equitune(SWAP, Trivial(C2))(times(1.0, 3.0), X).tolist() == [[5.5, 16.5]]


def test_equizero_by_hand():
    """The plain view has the larger value, 30 against 10."""
    assert Equizero(SWAP, SWAP).eval()(times(1.0, 3.0), X).tolist() == [[1.0, 30.0]]
    assert Equizero(SWAP, SWAP).eval()(times(3.0, 1.0), X).tolist() == [[1.0, 30.0]]
    by_first = Equizero(SWAP, SWAP, score=lambda y: -y[..., 0]).eval()
    assert by_first(times(1.0, 3.0), X).tolist() == [[1.0, 30.0]]
    assert by_first(times(-1.0, 3.0), X).tolist() == [[3.0, -10.0]]


@pytest.mark.parametrize(("score", "best"), [("max", 0), ("max_probability", 1), ("entropy", 1)])
def test_scores_choose_by_what_they_say(score, best):
    """The first view has the larger logit, the second the surer distribution."""
    outputs = torch.tensor([[[9.0, 8.5, 8.5]], [[4.0, 0.0, 0.0]]])
    assert SCORES[score](outputs).argmax(0).tolist() == [best]
    probabilities = outputs.softmax(-1)
    expected = {
        "max": outputs.amax(-1),
        "max_probability": probabilities.amax(-1),
        "entropy": (probabilities * probabilities.log()).sum(-1),
    }[score]
    assert_close(SCORES[score](outputs), expected, 1e-6)
    assert_close(SCORES[score](outputs.unsqueeze(2)), expected, 1e-6)
    assert SCORES[score](outputs[..., 0]).shape == (2, 1), "a single number a sample"


def test_equizero_averages_ties_at_fixed_points():
    """At x = 0 both views are the same, and neither branch alone is symmetric."""

    def net(x):
        return x + torch.tensor([1.0, 3.0])

    equizero = Equizero(SWAP, SWAP).eval()
    assert equizero(net, torch.zeros(1, 2)).tolist() == [[2.0, 2.0]]
    assert equizero(net, torch.tensor([[0.0, 0.5]])).tolist() == [[1.0, 3.5]]
    assert equizero.weights(equizero.branches(net, torch.zeros(1, 2))).tolist() == [[0.5], [0.5]]


def branches_of(*outputs):
    """Return what equizero sees when the two views of one sample have these outputs."""
    return Branches(torch.stack(outputs).unsqueeze(1), None, None, None)


@pytest.mark.parametrize(
    ("tolerance", "gap", "ties"),
    [(None, 1e-4, True), (None, 2e-4, False), (0.1, 0.05, True), (0.1, 0.2, False), (0, 1e-6, False), (0, 0.0, True)],
)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_equizero_ties_within_its_tolerance_of_the_best(tolerance, gap, ties, scale):
    equizero = Equizero(SWAP, SWAP, tolerance=tolerance)
    best, second = torch.tensor([scale, 0.0]), torch.tensor([0.0, scale * (1 - gap)])
    expected = [[0.5], [0.5]] if ties else [[1.0], [0.0]]
    assert equizero.weights(branches_of(best, second)).tolist() == expected
    assert equizero.weights(branches_of(second, best)).tolist() == expected[::-1]


def test_equizero_tolerance_is_absolute_below_one_and_leaves_half_precision_a_choice():
    small = branches_of(torch.tensor([1e-6, 0.0]), torch.tensor([0.0, 1e-5]))
    assert Equizero(SWAP, SWAP).weights(small).tolist() == [[0.5], [0.5]]
    for dtype in (torch.float16, torch.bfloat16):
        half = branches_of(torch.tensor([1.0, 0.0], dtype=dtype), torch.tensor([0.0, 0.9], dtype=dtype))
        assert Equizero(SWAP, SWAP).weights(half).tolist() == [[1.0], [0.0]]


def test_equizero_scores_samples_one_by_one():
    x = torch.tensor([[1.0, 10.0], [10.0, 1.0], [2.0, 2.0]])
    equizero = Equizero(SWAP, SWAP).eval()
    weights = equizero.weights(equizero.branches(times(1.0, 3.0), x))
    assert weights.T.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]


@pytest.mark.parametrize("cell", ["C4, signed to quantiles", "D4, grid to grid", "S3, keys to keys"])
def test_equizero_trains_straight_through(cell):
    """The value is that of evaluation, to the last bit; the gradient is that of the mean over all views."""
    rep, shape, out, size = CELLS[cell]
    score = (lambda y: y["a"].amax(-1)) if isinstance(size, dict) else "max"
    x = to(joined(batch_of(rep, shape, 5), fixed_points(rep, shape)), torch.float32)
    net, equizero, equitune = Net(rep, shape, size, False), Equizero(rep, out, score=score), Equitune(rep, out)

    def gradients(y):
        parts = list(y.values()) if isinstance(y, dict) else [y]
        total = sum((part * torch.linspace(-1, 1, part.numel()).view(part.shape)).sum() for part in parts)
        return torch.autograd.grad(total, list(net.parameters()))

    trained = equizero.train()(net, x)
    evaluated = equizero.eval()(net, x)
    assert_equal(trained, evaluated)
    ours, means, bests = gradients(trained), gradients(equitune(net, x)), gradients(evaluated)
    for our, mean in zip(ours, means, strict=True):
        assert_close(our, mean, 1e-5 * float(mean.abs().max()) + 1e-5)
    assert any((best - mean).abs().max() > 0.1 for best, mean in zip(bests, means, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_a_selector_chooses_and_the_function_fills(training):
    """Selecting with one net and evaluating with the other is what keeps a maximum from growing on its own noise."""
    equizero = Equizero(SWAP, SWAP).train(training)
    f, other = times(1.0, 3.0), times(3.0, 1.0)
    assert equizero(f, X).tolist() == [[1.0, 30.0]]
    assert equizero(f, X, other).tolist() == [[3.0, 10.0]], "other prefers the swapped view, g^-1 f(g x)"
    assert equizero(f, X, lambda x: (other(x), None)).tolist() == [[3.0, 10.0]]
    rep, shape, out, size = CELLS["D4, grid to permutation"]
    net, selector = (Net(rep, shape, size, False).double() for _ in range(2))
    points = joined(batch_of(rep, shape, 5), fixed_points(rep, shape))
    chosen = Equizero(rep, out).train(training)
    assert equivariance_error(lambda x: chosen(net, x, selector), rep, out, points) <= 1e-12
    assert equivariance_error(lambda x: chosen(net, x, selector) - chosen(net, x), Trivial(rep.group), out, points) > 0


@pytest.mark.parametrize("name", GROUPS)
def test_lambda_starts_as_equitune(name):
    rep, shape, out, size = CELLS[f"{name}, matrix to permutation"]
    net, x = Net(rep, shape, size, True).double(), batch_of(rep, shape, 4)
    fresh = LambdaEquitune(rep, out, features_dim=WIDTH).double()
    assert_close(fresh(net, x), Equitune(rep, out)(net, x), 1e-12)
    weights = fresh.weights(fresh.branches(net, x))
    assert_close(weights, torch.full_like(weights, 1 / len(rep.group)), 1e-12)


@pytest.mark.parametrize("features", [True, False], ids=["of features", "of views"])
def test_lambda_learns_which_views_to_trust(features):
    """One view in two is right, and its features say so: some steps are enough to see it."""

    def f(x):
        right = (x[:, :1] > x[:, 1:]).float()  # the larger entry comes first
        y = x * right + 9 * (1 - right)
        return (y, right) if features else y

    net = LambdaEquitune(SWAP, SWAP, features_dim=1 if features else 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x = torch.rand(32, 2)
    losses = []
    for _ in range(60):
        loss = (net(f, x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    assert losses[-1] < 0.1 * losses[0]


def test_lambda_sends_gradients_to_the_network_it_weighs():
    rep, shape, out, size = CELLS["C4, signed to permutation"]
    net, weigh = Net(rep, shape, size, True), LambdaEquitune(rep, out, features_dim=WIDTH)
    weigh(net, to(batch_of(rep, shape, 3), torch.float32)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    assert list(weigh.parameters())[-2].grad.abs().sum() > 0, "the last layer, which starts at zero, learns first"


# As modules


def test_make_symmetrizer_makes_every_method():
    for name, kind in METHODS.items():
        made = make_symmetrizer(name, SWAP, Trivial(C2), features_dim=4, shape=(2,))
        assert type(made) is kind
        assert (made.method, made.input, made.output) == (name, SWAP, Trivial(C2))
    assert list(METHODS) == ["identity", "equitune", "equizero", "lambda", "canonical", "product", "soft"]
    assert make_symmetrizer("equizero", SWAP, SWAP, score="entropy", tolerance=0.5).tolerance == 0.5
    assert make_symmetrizer("lambda", SWAP, SWAP, features_dim=4, hidden=7).score[0].out_features == 7
    assert (
        repr(make_symmetrizer("equizero", SWAP, SWAP)) == "Equizero(Permutation(C2, size=2) -> Permutation(C2, size=2))"
    )


@pytest.mark.parametrize("method", METHODS)
def test_symmetrize_shares_the_weights_of_any_module(method):
    rep, shape, out, size = CELLS["C4, grid to quantiles"]
    net = Net(rep, shape, size, True)
    made = symmetrize(net, method=method, input=rep, output=out, features_dim=WIDTH, shape=shape)
    assert made.module is net
    x = to(batch_of(rep, shape, 3), torch.float32)
    assert (equivariance_error(made, rep, out, x) <= 1e-5) == (method != "identity")  # soft is so at the start
    before = made(x)
    with torch.no_grad():
        list(net.parameters())[-1].add_(1.0)  # the bias of the last layer
    assert_close(made(x), before + 1.0, 1e-5)
    own = {key.removeprefix("module.") for key in made.state_dict() if key.startswith("module.")}
    assert own == set(net.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_state_dicts_hold_parameters_and_nothing_else(name):
    """Weights of a plain agent must load strictly: no tables, no buffers, before and after the first call."""
    rep, shape, out, size = CELLS["D4, grid to permutation"]
    symmetrizer = make_symmetrizer(name, rep, out, features_dim=WIDTH, shape=shape)
    symmetrizer(Net(rep, shape, size, True), to(batch_of(rep, shape, 2), torch.float32))
    layers = [f"score.{layer}.{part}" for layer in (0, 2, 4) for part in ("weight", "bias")]
    if name not in ("canonical", "product"):  # whose scores have weights of their own
        assert list(symmetrizer.state_dict()) == (layers if METHODS[name].learns else [])
        assert not list(symmetrizer.buffers())
    assert list(symmetrizer.state_dict()) == [key for key, _ in symmetrizer.named_parameters()]


@pytest.mark.parametrize("name", METHODS)
def test_copies_and_pickles_give_the_same_values(name):
    rep, shape, out, size = CELLS["C2xC2, grid to signed"]
    net, x = Net(rep, shape, size, True), to(batch_of(rep, shape, 2), torch.float32)
    symmetrizer = make_symmetrizer(name, rep, out, features_dim=WIDTH, shape=shape).eval()
    for parameter in symmetrizer.parameters():
        nn.init.normal_(parameter)
    for other in (copy.deepcopy(symmetrizer), pickle.loads(pickle.dumps(symmetrizer))):
        assert_equal(other(net, x), symmetrizer(net, x))
        assert all(a is not b for a, b in zip(other.parameters(), symmetrizer.parameters(), strict=True))


def test_one_group_with_one_element_changes_nothing():
    rep = Permutation(cyclic(1), [[0, 1]])
    for name in METHODS:
        symmetrizer = make_symmetrizer(name, rep, rep, features_dim=2, shape=(2,))
        assert symmetrizer(times(1.0, 3.0), X).tolist() == [[1.0, 30.0]]


class Sign(Symmetrizer):
    """A method of a user's own needs its weights alone."""

    method = "sign"

    def weights(self, branches):
        return (branches.views.sum(-1) > 0).float().softmax(0)


def test_a_method_is_its_weights():
    assert equivariance_error(partial(Sign(SWAP, SWAP), times(1.0, 3.0)), SWAP, SWAP, torch.randn(5, 2)) < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Equitune(SWAP, Trivial(cyclic(4))), "inputs move by C2 and outputs by C4: expected one group"),
        (lambda: make_symmetrizer("equitun", SWAP, SWAP), "unknown method 'equitun': .* did you mean 'equitune'"),
        (lambda: make_symmetrizer("lambda", SWAP, SWAP), "method 'lambda' without features_dim: expected the number"),
        (lambda: make_symmetrizer("canonical", SWAP, SWAP), "method 'canonical' without scores or shape: expected"),
        (lambda: make_symmetrizer("canonical", SWAP, SWAP, shape=(3,)), "acts on 2 entries, got shape"),
        (lambda: make_symmetrizer("canonical", SWAP, SWAP, shape=(2,), scores="nets"), "unknown scores 'nets'"),
        (lambda: make_symmetrizer("product", SWAP, SWAP, shape=(2,), hiden=3), "unknown option of product 'hiden'"),
        (lambda: make_symmetrizer("equizero", SWAP, SWAP, scor="max"), "unknown option of equizero 'scor': .* 'score'"),
        (lambda: make_symmetrizer("equitune", SWAP, SWAP, score="max"), "unknown option of equitune 'score'"),
        (lambda: Equitune(SWAP, SWAP, orbit_samples=0), "orbit_samples 0: expected a whole number from 1 to 2"),
        (lambda: Equitune(SWAP, SWAP, orbit_samples=3), "orbit_samples 3: expected"),
        (lambda: make_symmetrizer("equitune", SWAP, SWAP, orbit_samples=True), "orbit_samples True: expected"),
        (lambda: Equizero(SWAP, SWAP, score="entrpy"), "unknown score 'entrpy': .* did you mean 'entropy'"),
        (lambda: Equizero(SWAP, SWAP, tolerance=-1.0), "tolerance -1.0: expected a number of at least 0"),
        (lambda: Equizero(SWAP, SWAP, tolerance=float("nan")), "tolerance nan"),
        (lambda: LambdaEquitune(SWAP, SWAP, 5)(times(1.0, 3.0), X), "features_dim is 5: expected 2, as f returns"),
        (lambda: LambdaEquitune(SWAP, SWAP, 5)(lambda x: (x, x), X), "features_dim is 5: expected 2"),
        (
            lambda: LambdaEquitune(PerKey(C2, {"a": SWAP}), SWAP, 2)(lambda x: x["a"], {"a": X}),
            "lambda-equitune on a dictionary: expected f to return .y, features.",
        ),
        (
            lambda: Equizero(SWAP, PerKey(C2, {"a": SWAP}))(lambda x: {"a": x}, X),
            "equizero on outputs that are a dictionary: expected score=, a function of it",
        ),
        (lambda: Equitune(SWAP, SWAP)(lambda x: x[:, :1], X), "acts on 2 entries, got shape"),
        (
            lambda: symmetrize(times(1.0), method="equitune", input=SWAP, output=SWAP),
            r"symmetrize\(function\): expected a torch module",
        ),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
