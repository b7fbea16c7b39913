"""The line between two tasks: its ends are the two values, its figures are what they say, and it ends in a row of R."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from rankwise import saved
from rankwise.errors import StorageError, UsageError
from rankwise.learning.connectivity import barrier, connectivity_path, distance, linear_cka
from rankwise.learning.ledger import Ledger

I_LORA = [
    {"kind": "replay", "size": 12, "batch_size": 0, "average": True},
    {"kind": "ema", "decay": 0.5},
    {"kind": "consistency"},
]


def test_the_line_goes_from_one_to_the_other_through_their_mean():
    a, b = {"x": torch.randn(9) * 1e3, "y": torch.randn(2, 3)}, {"x": torch.randn(9), "y": torch.randn(2, 3) / 7}
    first, middle, last = connectivity_path(a, b, [0.0, 0.5, 1.0])
    for name in a:
        assert torch.equal(first[name], a[name]) and torch.equal(last[name], b[name])
        torch.testing.assert_close(middle[name], (a[name] + b[name]) / 2)


def test_factors_are_interpolated_and_not_their_product():
    a = {"A": torch.randn(2, 5), "B": torch.randn(4, 2)}
    b = {"A": torch.randn(2, 5), "B": torch.randn(4, 2)}
    (middle,) = connectivity_path(a, b, [0.5])
    mean = (a["B"] @ a["A"] + b["B"] @ b["A"]) / 2
    assert not torch.allclose(middle["B"] @ middle["A"], mean, atol=1e-2)


def test_a_barrier_is_the_height_over_the_chord():
    alphas = [0.0, 0.25, 0.5, 1.0]
    assert barrier([1.0, 2.0, 1.5, 3.0], alphas) == 0.5
    assert barrier([1.0, 1.5, 2.0, 3.0], alphas) == 0.0  # the chord itself
    assert barrier([1.0, 0.5, 0.2, 3.0], alphas) == 0.0  # a valley is no barrier


def test_the_distance_is_over_all_elements():
    a = {"x": torch.zeros(3), "y": torch.zeros(2, 2)}
    assert distance(a, {"x": torch.full((3,), 2.0), "y": torch.full((2, 2), 1.0)}) == pytest.approx(4.0)


def test_cka_does_not_see_rotation_scale_or_shift_and_sees_the_rest():
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    turned = 3 * x @ torch.linalg.qr(torch.randn(5, 5))[0] + 7
    assert linear_cka(x, x) == pytest.approx(1.0, abs=1e-5) and linear_cka(x, turned) == pytest.approx(1.0, abs=1e-4)
    assert linear_cka(x, torch.randn(60, 5)) < 0.4
    gram = [(m - m.mean(0)) @ (m - m.mean(0)).T for m in (x, turned[:, :2])]
    wanted = (gram[0] * gram[1]).sum() / (gram[0].norm() * gram[1].norm())
    assert linear_cka(x, turned[:, :2]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("line") / "run"
    return small.run(folder, "i-lora", strategy=I_LORA, adapter={"rank": 2}, train={"lr": 1e-2})


def test_the_end_of_the_line_is_the_row_of_r(run):
    measured = saved.path(run, alphas=3)
    results = json.loads((run / "results.json").read_text())
    assert measured["tasks"] == results["tasks"] and measured["alphas"] == [0.0, 0.5, 1.0]
    assert [measured["scores"][t][-1] for t in measured["tasks"]] == results["matrix"][-1]
    assert all(len(measured[what][t]) == 3 for what in ("scores", "losses") for t in measured["tasks"])
    assert measured["distance"] > 0 and all(0 < value <= 1 for value in measured["cka"].values())
    assert measured["best"] in measured["alphas"]
    again = saved.path(run, tasks=tuple(measured["tasks"]), alphas=3)
    assert again == measured  # and the run itself was not changed


def test_a_line_from_a_task_to_itself_is_flat(run):
    name = json.loads((run / "results.json").read_text())["tasks"][0]
    measured = saved.path(run, tasks=(name, name), alphas=2)
    assert measured["distance"] == 0 and measured["barriers"][name] == 0
    assert measured["cka"][name] == pytest.approx(1.0, abs=1e-5)


def test_full_fine_tuning_has_a_line_too(small, tmp_path):
    measured = saved.path(small.run(tmp_path / "run", "finetune"), alphas=2)
    assert measured["distance"] > 0


def test_what_has_no_line_is_refused_by_name(small, tmp_path, run):
    with pytest.raises(UsageError, match="method 'mora': other blocks learn in .*adapter.growth = \"keep\""):
        saved.path(small.run(tmp_path / "mora", "mora", adapter={"rank": 2}))
    with pytest.raises(UsageError, match="--tasks: task 'digits-9' is not in this run; did you mean"):
        saved.path(run, tasks=("digits-9", "digits-2"))
    with pytest.raises(UsageError, match="1 tasks were learnt; a line needs two"):
        saved.path(small.run(tmp_path / "joint", "joint"))
    with pytest.raises(StorageError, match="no run there"):
        saved.path(tmp_path / "nothing")


def test_a_task_whose_end_is_gone_is_named(small, tmp_path):
    run = small.run(tmp_path / "run", "lora")
    first, _ = sorted(Ledger(run).task_ends().items())[0]
    shutil.rmtree(Ledger(run).task_ends()[first])
    with pytest.raises(StorageError, match="no snapshot of the end of .*: it was not learnt .yet., or the snapshot is"):
        saved.path(run, alphas=2)
