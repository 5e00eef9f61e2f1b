"""The figures of a stress page, by hand and against the runs that they are made of."""

import json

import numpy as np
import pytest
from make_run import make_run

from raylora.report.figures import LIGHT
from raylora.report.stress import Ended, campaign, mean_height, trapezoids, worst_client, write_campaign
from raylora.report.stress_plots import campaign_pictures


def test_the_mean_height_is_that_of_the_curve_as_it_is_drawn():
    """Each level as far from the next: the dial's own values would let two of [100, 1, 0.5] count alone."""
    assert trapezoids(2) == [0.5, 0.5] and trapezoids(3) == [0.25, 0.5, 0.25]
    assert mean_height([0.9, 0.9, 0.9]) == pytest.approx(0.9) and mean_height([1.0, 0.5, 0.3]) == pytest.approx(0.25 + 0.25 + 0.075)
    assert mean_height([0.5, None]) is None


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Two strategies, three levels, two seeds; one of them fails at the last level."""
    folder = tmp_path_factory.mktemp("stress")
    quality = {("mean", 0.0): 0.9, ("mean", 0.1): 0.8, ("mean", 0.3): 0.5, ("median", 0.0): 0.88, ("median", 0.1): 0.87}
    ended = []
    for level in (0.0, 0.1, 0.3):
        for label in ("mean", "median"):
            for seed in (0, 1):
                number = len(ended)
                here = quality.get((label, level))
                if here is not None:
                    make_run(folder / str(number), strategy="fedit", seed=seed, quality=here, config={"faults.dropout": level})
                how = ("finished", "") if here is not None else ("failed", "round 3, client ge: the loss is nan")
                ended.append(Ended(number, label, (level,), seed, *how, folder / str(number)))
    return campaign("dropouts", {"faults.dropout": (0.0, 0.1, 0.3)}, ["mean", "median"], ended, replicates=200)


def test_points_are_the_runs_and_heights_are_the_points(found):
    mean, median = found.curves
    heights = [p.score.in_client.value for p in mean.points]
    assert heights[0] > heights[1] > heights[2] and [p.score.seeds for p in mean.points] == [(0, 1)] * 3
    assert mean.height.value == pytest.approx(heights[0] / 4 + heights[1] / 2 + heights[2] / 4)
    assert mean.height.low < mean.height.value < mean.height.high
    assert median.height.value is None and median.points[-1].score is None
    for point in mean.points:
        scores = point.score.per_client
        assert point.worst.value == min(scores.values()) and scores[point.worst_client] == point.worst.value
        assert point.worst.low < point.worst.value < point.worst.high and point.worst.n == 6


def test_every_strategy_is_tested_against_the_first_at_each_level(found):
    assert {levels: [(p.a, p.b) for p in pairs] for levels, pairs in found.pairs.items()} == {
        (0.0,): [("mean", "median")],
        (0.1,): [("median", "mean")],
    }
    rows = {row[0]: row for row in found.pairs_table().rows}
    assert [row[1:3] for row in rows.values()] == [("median", "mean")] * 2, "the first strategy stands in B"
    ahead = found.pairs[(0.0,)][0]
    turned = rows["0"][3]
    assert (turned.value, turned.low, turned.high) == (-ahead.difference, -ahead.ci95[1], -ahead.ci95[0]) and turned.value < 0
    assert rows["0.1"][3].value > 0


def test_who_lies_is_said(tmp_path):
    (one,) = one_level_each(tmp_path, (0.5,))
    summary = json.loads((tmp_path / "0" / "summary.json").read_text())
    summary["faults"] = {"ge": {"attack": "negate", "speed": 1.0}, "canon": {"speed": 2.0}}
    (tmp_path / "0" / "summary.json").write_text(json.dumps(summary))
    found = campaign("liars", {"faults.byzantine": (0.5,)}, ["mean"], [one], replicates=200)
    (row,) = found.levels_table().rows
    assert row[6] == "ge: attack negate"


def one_level_each(folder, levels, **options):
    for number, level in enumerate(levels):
        make_run(folder / str(number), quality=0.9 - 0.1 * number, config={"network.up_mbit": level}, **options)
        yield Ended(number, "mean", (level,), 0, "finished", "", folder / str(number))


def test_a_level_may_be_given_client_by_client(tmp_path):
    levels = (10.0, {"ge": 1.0, "canon": 2.5})
    found = campaign("lines", {"network.up_mbit": levels}, ["mean"], list(one_level_each(tmp_path, levels)), replicates=200)
    assert [point.level for point in found.curves[0].points] == [10.0, "{ge:1,canon:2.5}"]
    assert all(point.score is not None for point in found.curves[0].points)
    assert "{ge:1,canon:2.5}" in write_campaign(found, tmp_path / "stress.html", "").read_text()


def test_a_level_without_a_score_is_a_gap_in_the_line(tmp_path):
    ended = list(one_level_each(tmp_path, (0.0, 0.1, 0.3)))
    ended[1] = Ended(1, "mean", (0.1,), 0, "refused", "for a reason", tmp_path / "1")
    found = campaign("lines", {"faults.dropout": (0.0, 0.1, 0.3)}, ["mean"], ended, replicates=200)
    (line,) = campaign_pictures(found)[0].draw(LIGHT).axes[0].lines
    heights = line.get_ydata()
    assert np.isnan(heights[1]) and np.isfinite(heights[[0, 2]]).all()


def test_no_interval_of_points_that_have_none(tmp_path):
    ended = list(one_level_each(tmp_path, (10.0, 1.0), patients=1))
    found = campaign("lines", {"network.up_mbit": (10.0, 1.0)}, ["mean"], ended, replicates=200)
    (curve,) = found.curves
    assert curve.points[0].score.in_client.low is None and curve.height.value is not None and curve.height.low is None


def test_the_page_says_what_is_missing_and_why(found, tmp_path):
    page = write_campaign(found, tmp_path / "page.html", "strategies: {mean: {}, median: {}}").read_text()
    assert "strategies: {mean: {}, median: {}}" in page, "what was tested"
    assert "the loss is nan" in page and "median: without a score at 0.3" in page and "phantoms" in page
    assert page.count("<img") == 1 and "Virtual time of a run" not in page, "no clock ran"
    assert found.tables()[0].title == "Robustness to faults.dropout"
    curves = found.as_dict()["curves"]
    assert curves[1]["points"][2] == {
        "level": 0.3,
        "mean": None,
        "worst": {"client": "", "value": None, "low": None, "high": None, "n": None},
        "virtual_seconds": None,
    }


def test_the_worst_client_of_nothing_is_nobody(found):
    from raylora.report.groups import Group
    from raylora.report.runs import read_run

    own = Group("x", {}, (read_run(found.ended[0].folder),)).in_client("auc")
    assert worst_client(own) == ("", worst_client(own)[1]) and worst_client(own)[1].value is None
