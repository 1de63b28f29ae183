"""Learned canonicalization is exact, sees no orbit, learns through its choice, and adds its losses to any other."""

from typing import Any, cast

import pytest
import torch
from torch import nn

from equirl import (
    Grid,
    Matrix,
    Permutation,
    SignedPermutation,
    Symmetrized,
    Trivial,
    UserError,
    cyclic,
    dihedral,
    equivariance_error,
    symmetric,
)
from equirl.canonicalizers import (
    Canonicalize,
    CentroidScores,
    GridScores,
    OrbitScores,
    ReferenceScores,
    RegularScores,
    with_loss,
)
from equirl.symmetrizers import Symmetrizer

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
S3 = Permutation(symmetric(3), [list(p) for p in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))])


def perceptron(size: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, out))


def on_vectors(rep: Any, size: int) -> dict[str, Any]:
    return {
        "orbit": lambda: OrbitScores(rep, perceptron(size, 1)),
        "views": lambda: OrbitScores(rep, perceptron(size, len(rep.group))),
        "reference": lambda: ReferenceScores(rep, perceptron(size, 8), 8),
    }


def on_pictures(rep: Any) -> dict[str, Any]:
    return {"grid": lambda: GridScores(rep, (2, 5, 5)), "centroids": lambda: CentroidScores(rep, (2, 5, 5))}


C2, C4, D4 = cyclic(2), cyclic(4), dihedral(4)
SIGNS = SignedPermutation(C2, [[0, 1, 2], [0, 1, 2]], [[1, 1, 1], [-1, -1, 1]])
CENTRED = SignedPermutation(C2, [[0, 1], [0, 1]], [[1, 1], [-1, -1]], centre=[0.5, 0.0])
turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
TURNS = Matrix(C4, torch.stack([torch.matrix_power(turn, k) for k in range(4)]).numpy())
# input, shape, output, its size, scores by name
CASES: dict[str, Any] = {
    "C2 signs": (SIGNS, (3,), Permutation.regular(C2), 2, on_vectors(SIGNS, 3)),
    "C2 centred": (CENTRED, (2,), SIGNS, 3, on_vectors(CENTRED, 2)),
    "C4 matrices": (TURNS, (2,), TURNS, 2, on_vectors(TURNS, 2)),
    "S3": (S3, (3,), S3, 3, on_vectors(S3, 3)),
    "C4 pictures": (
        *(Grid(C4), (2, 5, 5), Permutation.regular(C4), 4),
        {**on_pictures(Grid(C4)), **on_vectors(Grid(C4), 50)},
    ),
    "D4 pictures": (
        *(Grid(D4), (2, 5, 5), Trivial(D4), 3),
        {**on_pictures(Grid(D4)), **on_vectors(Grid(D4), 50)},
    ),
}
PAIRS = [(case, name) for case, (*_, scores) in CASES.items() for name in scores]


def made(case: str, name: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Return the symmetrizer, a network and inputs, some of which elements leave as they are."""
    torch.manual_seed(0)
    rep, shape, output, size, scores = CASES[case]
    canonical = Canonicalize(rep, output, scores[name](), **options).to(dtype)
    f = perceptron(int(torch.tensor(shape).prod()), size).to(dtype)
    x = torch.randn(9, *shape, dtype=dtype)
    fixed = rep.orbit(x[:3]).mean(0)
    return canonical, f, torch.cat([x, fixed, torch.zeros_like(x[:1])])


def slow(canonical: Any, f: Any, x: torch.Tensor) -> torch.Tensor:
    """One input after another, one tied pose after another."""
    rows = []
    for one in x:
        scores = canonical.scores(one[None])[:, 0]
        best = [g for g in range(len(scores)) if scores[g] >= scores.max() - 1e-10]
        inverses = canonical.input.group.inverses
        poses = [canonical.output(g, f(canonical.input(int(inverses[g]), one[None]))) for g in best]
        rows.append(torch.stack(poses).mean(0))
    return torch.cat(rows)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_it_is_equivariant_at_fixed_points_too_before_and_after_learning(case, name, dtype, mode):
    canonical, f, x = made(case, name, dtype, prior=0.1, apart=0.1)
    learner = torch.optim.SGD([*canonical.parameters(), *f.parameters()], 0.05)

    def error() -> float:
        canonical.train(mode)
        return equivariance_error(lambda x: canonical(f, x), canonical.input, canonical.output, x)

    assert error() <= TOLERANCE[dtype]
    canonical.train()
    for _ in range(5):
        learner.zero_grad()
        (canonical(f, x) - torch.arange(canonical(f, x).shape[1])).square().mean().backward()
        learner.step()
    assert error() <= TOLERANCE[dtype]
    bare = equivariance_error(f, canonical.input, canonical.output, x)
    assert bare > 1e-3  # the network alone is not


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_it_is_the_best_pose_and_the_mean_of_tied_ones(case, name, mode):
    canonical, f, x = made(case, name)
    canonical.train(mode)
    assert torch.allclose(canonical(f, x), slow(canonical, f, x), atol=1e-12)


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_scores_move_with_the_input(case, name):
    canonical, _, x = made(case, name)
    group, c = canonical.input.group, canonical.scores(x)
    for h in range(len(group)):
        moved = canonical.scores(canonical.input(h, x))
        assert all(torch.allclose(moved[group.product(h, g)], c[g], atol=1e-10) for g in range(len(group)))


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_weights_of_elements_make_the_value(case, name):
    canonical, f, x = made(case, name)
    branches = canonical.eval().branches(f, x)
    weights = canonical.weights(branches)
    assert torch.allclose(weights.sum(0), torch.ones(len(x), dtype=weights.dtype))
    value = (weights[..., None] * branches.undone).sum(0)
    assert torch.allclose(value, Symmetrizer.forward(canonical, f, x))
    assert torch.allclose(value, canonical(f, x), atol=1e-12)


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", CASES)
def test_the_network_sees_each_input_once(case, mode):
    canonical, f, x = made(case, next(iter(CASES[case][-1])))
    canonical.train(mode)
    seen: list[int] = []
    f.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    canonical(f, x[:9])
    assert seen == [9]
    canonical(f, x)  # fixed points have as many poses as tie
    assert len(seen) == 2
    assert seen[1] > len(x)


@pytest.mark.parametrize("beta", [0.5, 3.0])
@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_the_choice_has_the_gradient_of_the_softmax(case, name, beta):
    canonical, f, x = made(case, name, beta=beta)
    x = x[:9]  # without ties
    group = canonical.input.group
    inverses = torch.tensor(group.inverses.tolist())
    c = canonical.scores(x)
    soft = (beta * c).softmax(0)
    w = nn.functional.one_hot(c.argmax(0), len(group)).T + soft - soft.detach()

    def mixed(views: torch.Tensor) -> torch.Tensor:
        return (w.view(*w.shape, *[1] * (views.ndim - 2)) * views).sum(0)

    expected = mixed(canonical.output.orbit(f(mixed(canonical.input.orbit(x)[inverses]))))
    learned = [*canonical.parameters(), *f.parameters()]
    theirs = torch.autograd.grad(expected.square().sum(), learned)
    ours = torch.autograd.grad(canonical(f, x).square().sum(), learned)
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(ours, theirs, strict=True))
    assert any(g.abs().max() > 1e-6 for g in ours[: len(list(canonical.parameters()))])


def test_losses_are_added_once_whatever_is_differentiated():
    canonical, f, x = made("C4 pictures", "reference", prior=2.0, apart=0.5)
    c, own = canonical.scores(x), canonical.scores.loss(x)
    extra = 2.0 * nn.functional.cross_entropy(c.T, torch.zeros(len(x), dtype=torch.long)) + 0.5 * own
    learned = list(canonical.scores.parameters())
    expected = torch.autograd.grad(extra, learned)
    alone = made("C4 pictures", "reference")[0]
    alone.load_state_dict(canonical.state_dict())
    bare = torch.autograd.grad(alone(f, x).pow(3).sum(), list(alone.scores.parameters()))
    ours = torch.autograd.grad(canonical(f, x).pow(3).sum(), learned)
    assert all(torch.allclose(o, b + e, atol=1e-9) for o, b, e in zip(ours, bare, expected, strict=True))


@pytest.mark.parametrize("case", ["C4 pictures", "S3", "C4 matrices"])
def test_aligned_poses_are_those_in_which_outputs_are_alike(case):
    """One input after another, and the choice itself has no gradient."""
    canonical, f, x = made(case, "orbit", align=2.0, temperature=0.5)
    x = x[:9]  # without ties
    rep, n = canonical.output, len(canonical.input.group)
    y, c = canonical(f, x).detach(), canonical.scores(x)
    chosen = canonical.eval().weights(canonical.branches(f, x)).argmax(0)  # views; their inverses are the poses
    poses = [f(canonical.input(int(g), one[None]))[0] for g, one in zip(chosen, x, strict=True)]
    canonical.train()
    v = torch.stack(poses).mean(0).detach()
    alike = [torch.stack([(v * rep(rep.group.inverse(g), one[None])[0]).sum() for g in range(n)]) for one in y]
    deviation = torch.stack([each.var() for each in alike]).mean().sqrt()
    losses = []
    for i, each in enumerate(alike):
        losses.append(-((each / deviation / 0.5).softmax(0) * c[:, i].log_softmax(0)).sum())
    learned = list(canonical.scores.parameters())
    expected = torch.autograd.grad(2.0 * torch.stack(losses).mean(), learned)
    ours = torch.autograd.grad(canonical(f, x).pow(3).sum(), learned)
    assert all(torch.allclose(one, other, atol=1e-9) for one, other in zip(ours, expected, strict=True))
    assert any(each.abs().max() > 1e-6 for each in ours)


def test_poses_of_invariant_outputs_are_not_aligned():
    canonical, f, x = made("D4 pictures", "grid", align=2.0)
    bare, _, _ = made("D4 pictures", "grid")
    bare.load_state_dict(canonical.state_dict())
    ours, theirs = (torch.autograd.grad(each(f, x).sum(), list(each.parameters())) for each in (canonical, bare))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert any(each.abs().max() > 0 for each in ours)


def test_the_loss_of_a_reference_keeps_poses_apart():
    canonical, _, x = made("S3", "reference")
    u = torch.stack([nn.functional.normalize(canonical.scores.net(canonical.input(g, x)), dim=1) for g in range(6)])
    pairs = [(u[g] * u[h]).sum(1).abs().mean() for g in range(6) for h in range(6) if g != h]
    assert torch.allclose(canonical.scores.loss(x), torch.stack(pairs).mean())
    assert OrbitScores(S3, perceptron(3, 1)).loss(x) is None


@pytest.mark.parametrize("case", CASES)
def test_each_pose_is_judged_by_all_views(case):
    canonical, _, x = made(case, "views")
    scores, rep = canonical.scores, canonical.input
    group = rep.group
    views = [scores.net(rep(group.inverse(p), x)) for p in range(len(group))]  # one column an element
    for g in range(len(group)):
        expected = sum(view[:, group.product(group.inverse(p), g)] for p, view in enumerate(views))
        torch.testing.assert_close(scores(x)[g], expected, rtol=0, atol=1e-12)


def test_a_prior_brings_the_poses_of_the_data_back():
    canonical, f, _ = made("C4 pictures", "grid", prior=1.0)
    canonical.train()
    upright = torch.rand(64, 2, 5, 5, dtype=torch.float64) * torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    learner = torch.optim.Adam(canonical.parameters(), 0.01)
    for _ in range(60):
        learner.zero_grad()
        (0 * canonical(f, upright).sum()).backward()
        learner.step()
    canonical.eval()
    turned = Grid(C4)(torch.randint(4, (64,)), upright)
    agree = (canonical(f, upright) - f(upright)).abs().amax(1) < 1e-9
    assert agree.double().mean() > 0.9
    assert torch.allclose(canonical(f, turned).sort(1).values, canonical(f, upright).sort(1).values, atol=1e-9)


def test_pictures_of_bytes_are_scaled():
    torch.manual_seed(0)
    scores = GridScores(Grid(C4), (2, 5, 5))
    x = torch.randint(256, (3, 2, 5, 5), dtype=torch.uint8)
    assert torch.allclose(scores(x), scores(x.float() / 255))
    module = Symmetrized(nn.Sequential(nn.Flatten(), nn.Linear(50, 4)), Canonicalize(Grid(C4), Trivial(C4), scores))
    module(x.float()).sum().backward()
    assert equivariance_error(module.eval(), Grid(C4), Trivial(C4), x.float()) <= 1e-4


def test_features_beside_the_outputs_are_left_out():
    canonical, f, x = made("C2 signs", "orbit")
    assert torch.equal(canonical(lambda x: (f(x), x), x), canonical(f, x))


def test_a_loss_passes_through_in_evaluation_and_without_gradients():
    y = torch.ones(2, requires_grad=True)
    assert with_loss(y, None) is y
    canonical, f, x = made("C2 signs", "reference", apart=1.0)
    with torch.no_grad():
        assert not canonical(f, x).requires_grad


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Canonicalize(SIGNS, SIGNS, OrbitScores(CENTRED, perceptron(2, 1))), "expected one representation"),
        (lambda: Canonicalize(SIGNS, TURNS, OrbitScores(SIGNS, perceptron(3, 1))), "expected one group"),
        (lambda: made("C2 signs", "orbit", beta=0), "beta 0: expected a number above 0"),
        (lambda: made("C2 signs", "orbit", prior=-1), "prior -1: expected a number of at least 0"),
        (lambda: made("C2 signs", "orbit", apart=float("nan")), "apart nan"),
        (lambda: made("C2 signs", "orbit", tolerance=-1), "tolerance -1"),
        (lambda: made("C2 signs", "orbit", align=-1), "align -1"),
        (lambda: made("C2 signs", "orbit", temperature=0), "temperature 0"),
        (lambda: RegularScores(Grid(C4), perceptron(75, 5), (3, 5, 5)), "scores of shape (5,) an input: expected (4,)"),
        (lambda: RegularScores(Grid(C4), perceptron(75, 4), (3, 5, 5)), "scores that move otherwise than C4"),
        (lambda: CentroidScores(Grid(C4), (3, 5, 5), rate=0), "rate 0: expected a number above 0"),
        (lambda: CentroidScores(cast("Any", SIGNS), (3, 5, 5)), "expected pictures of layout 'CHW'"),
        (lambda: OrbitScores(SIGNS, perceptron(3, 3), (3,)), "expected one number an input, or 2"),
        (lambda: ReferenceScores(SIGNS, perceptron(3, 8), 0), "features_dim 0"),
        (lambda: ReferenceScores(SIGNS, perceptron(3, 8), 7)(torch.zeros(1, 3)), "features_dim 7: expected 8"),
        (lambda: OrbitScores(SIGNS, perceptron(3, 3))(torch.zeros(1, 3)), "expected one number an input, or 2"),
        (lambda: made("C2 signs", "orbit")[0](nn.Identity(), {"a": torch.zeros(1, 3)}), "expected a tensor"),
    ],
)
def test_mistakes_are_told_in_one_line(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
