"""The script that canonicalizes a pretrained classifier: its scores are exact, learn, and see the given weights."""

import json

import pytest
import torch

from equirl import Symmetrized, equivariance_error
from equirl.canonicalizers import Canonicalize
from tests.benchmarks import canonical_cifar as study
from tests.benchmarks import canonical_data
from tests.benchmarks.canonical_nets import TURN, ResNet20, Tuned, pretrained


@pytest.mark.parametrize("name", study.RECIPES)
def test_scores_move_with_the_picture_and_learn(name, tmp_path):
    torch.manual_seed(0)
    base = ResNet20().requires_grad_(False).eval()
    recipe = study.RECIPES[name]._replace(batch=4, epochs=2)
    scores = recipe.make(base)
    tuned = study.tuned_in(scores)
    kept = tuned.net.state_dict(prefix="net.net.") if tuned else {}
    frozen = {key: value.clone() for key, value in kept.items() if key.split(".")[2] not in tuned.learning}
    assert bool(tuned) == bool(frozen)
    before = [parameter.detach().clone() for parameter in scores.parameters() if parameter.requires_grad]
    pictures = torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8)
    features = study.shallow(base, pictures, tmp_path) if tuned and not tuned.low_learns else None
    assert study._train(name, scores, recipe, pictures, features, seed=0) > 0
    learning = [parameter for parameter in scores.parameters() if parameter.requires_grad]
    assert any(not torch.equal(one, other) for one, other in zip(before, learning, strict=True))
    assert all(torch.equal(scores.state_dict()[key], value) for key, value in frozen.items())
    net = Symmetrized(base, Canonicalize(TURN, study.STILL, scores, prior=1.0)).eval()
    assert equivariance_error(net, TURN, study.STILL, torch.rand(3, 3, 32, 32)) <= 1e-5
    none = torch.zeros(12).long()
    assert study.measured(net, base, pictures, none, none)["forwards"] <= 1.25  # but for ties, 1


def test_stored_features_are_those_of_every_pose_that_scores_see(tmp_path):
    torch.manual_seed(0)
    base = ResNet20().eval()
    pictures = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    stored = study.shallow(base, pictures, tmp_path)
    assert study.shallow(base, pictures, tmp_path).tobytes() == stored.tobytes()  # read again
    for mirrored in range(2):
        x = pictures.float() / 255
        for g, inverse in enumerate(TURN.group.inverses.tolist()):
            expected = base.low(TURN(inverse, x.flip(3) if mirrored else x)).permute(0, 2, 3, 1)
            torch.testing.assert_close(torch.tensor(stored[mirrored, g]).float(), expected, rtol=0, atol=5e-3)
    rows = torch.tensor([4, 1])
    given = study.augmented_features(stored, rows, torch.Generator().manual_seed(0))
    assert given.shape == (4, 2, 32, 16, 16)


@pytest.mark.parametrize("name", ["canonical, prior, tuned", "canonical, contrastive"])
def test_scores_by_stored_features_are_those_by_pictures(name):
    torch.manual_seed(0)
    base = ResNet20().requires_grad_(False).eval()
    scores, x = study.RECIPES[name].make(base).train(), torch.rand(3, 3, 32, 32)
    by_pictures = scores(x)
    tuned = study.tuned_in(scores)
    tuned.stored = base.low(canonical_data.poses(x).flatten(0, 1)).unflatten(0, (4, 3))
    torch.testing.assert_close(scores(x), by_pictures, rtol=1e-4, atol=1e-5)


def test_a_mirror_image_is_judged_as_turned_the_other_way():
    torch.manual_seed(0)
    tuned, x = Tuned(ResNet20(), 4, fresh=8).eval(), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(tuned(x.flip(3)), tuned(x)[:, [0, 3, 2, 1]], rtol=1e-5, atol=1e-6)
    seen = (tuned.net(x) + tuned.net(x.flip(3))[:, [0, 3, 2, 1]]) / 2
    torch.testing.assert_close(tuned(x), seen)
    assert tuned.net(x).shape == (3, 4)
    assert not torch.allclose(tuned.net(x), tuned(x), atol=1e-4)


def test_pictures_are_varied_one_by_one_and_stay_upright():
    x = torch.zeros(64, 3, 32, 32)
    x[:, 0, 8, 20] = 1.0  # one bright pixel
    seen = canonical_data.varied(x, torch.Generator().manual_seed(0))[:, 0]
    assert seen.min() >= 0
    assert seen.max() <= 1
    places = {divmod(int(picture.argmax()), 32) for picture in seen}
    assert len(places) > 16  # a shift each
    assert all(abs(row - 8) <= 3 for row, _ in places)
    assert all(min(abs(column - 20), abs(column - 11)) <= 3 for _, column in places)
    assert {column > 15 for _, column in places} == {False, True}  # mirrored or not
    assert len({round(float(picture.max()), 4) for picture in seen}) > 16  # a contrast each


def test_the_given_weights_are_those_of_a_classifier(data_dir):
    net = pretrained(data_dir)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert sum(parameter.numel() for parameter in net.parameters()) == 269_722


def test_the_page_is_the_committed_one_and_the_committed_result_is_exact():
    found = json.loads((study.HERE / "canonical_cifar.json").read_text(encoding="utf-8"))
    assert study.page(found) == (study.HERE / "canonical_cifar.md").read_text(encoding="utf-8")
    rows = {row["arm"]: row for row in found["rows"]}
    assert tuple(rows) == study.ARMS
    for name in study.RECIPES:
        assert rows[name]["error, float32"] <= 1e-5
        assert rows[name]["error, float64"] <= 1e-12
        assert rows[name]["upright"] == pytest.approx(rows[name]["turned"], abs=0.05)  # rounding may tip a pose
        assert rows[name]["forwards"] == pytest.approx(1, abs=0.01)
