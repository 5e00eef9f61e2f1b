"""The overhead campaigns run, at a size that says nothing of speed, by the code that is measured."""

import json

import numpy as np
import pytest

from benchmarks import overhead

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("campaign", ["rounds", "growth"])
def test_a_campaign_writes_what_it_measured(campaign, tmp_path, capsys):
    found = overhead.main([campaign, "--small", "--output", str(tmp_path)])
    assert json.loads((tmp_path / f"overhead_{campaign}.json").read_text()) == found == json.loads(capsys.readouterr().out)
    assert found["ms_per_round"] > 0 and (campaign == "growth" or found["ms_per_round_kept"] > 0)
    if (
        campaign == "growth"
    ):  # one adapter kept in every round would be 0.01 MB each time; what Ray takes now and then is no part of a median
        steps = np.diff(found["heap_mb"][8:])
        assert np.median(steps) < 0.005, steps


@pytest.mark.usefixtures("ray_cluster")
def test_the_curves_are_measured_and_drawn(tmp_path, monkeypatch):
    """All points in this process and its Ray: to start one for each takes longer than the rest."""
    monkeypatch.setattr(overhead, "fresh", overhead.play)
    found = overhead.main(["curves", "--small", "--output", str(tmp_path)])
    assert all(point["rounds_per_s"] > 0 and point["pss_mb"] > 0 for points in found["curves"].values() for point in points)
    assert (tmp_path / "overhead_curves_clients.png").stat().st_size > 5000


def test_the_curves_are_drawn(tmp_path):
    points = [{"rank": r, "tokens": 9, "rounds_per_s": 1.0 / r, "pss_mb": 100.0 + r} for r in (1, 2)]
    made = overhead.draw({"curves": {"rank": points, "side": points}}, tmp_path / "overhead_curves")
    assert [path.name for path in made] == ["overhead_curves_rank.png", "overhead_curves_tokens.png"] and all(
        path.stat().st_size > 5000 for path in made
    )
