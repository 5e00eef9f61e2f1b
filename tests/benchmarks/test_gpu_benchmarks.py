"""What is measured on a GPU, small and on this machine's CPU: rows, counts of work, and what is said of two devices."""

import json
import shutil

import pytest

from benchmarks import demo_gpu, stacked_gpu
from raylora.models import cinema

pytestmark = pytest.mark.slow
TINY = {
    "image_size": (32, 32, 4),
    **{"patch": (4, 4, 1), "scale": (2, 2, 1), "conv_chans": (4, 8), "conv_n_blocks": 1, "embed": 24, "depth": 3, "heads": 2},
}


def test_every_row_of_stacked_clients(monkeypatch, tmp_path):
    monkeypatch.setitem(cinema.SIZES, "tiny", TINY)
    monkeypatch.setitem(stacked_gpu.LARGE, "cpu", 128)
    monkeypatch.setattr(stacked_gpu, "REPEATS", 1)
    monkeypatch.setattr(stacked_gpu, "ALONE", 1)
    found = stacked_gpu.measure("cpu", "tiny", [1, 2])
    rows = found["rows"]
    assert [(row["dtype"], row["work"], row["clients"]) for row in rows] == [
        (dtype, work, count) for dtype in ("bfloat16", "float32") for work in stacked_gpu.WORK for count in (1, 2)
    ]
    assert all(row["stacked"]["same_bits"] and row["stacked"]["samples_per_s"] > 0 for row in rows)
    assert [("separate" in row, row.get("largest_difference")) for row in rows] == [(True, 0.0), (False, None)] * 6
    everything, two, kept = (next(row["tflop_per_sample"] for row in rows if row["work"] == work) for work in stacked_gpu.WORK)
    assert everything > two > kept > 0, "no gradient, then no pass at all, of what precedes two blocks"
    assert len(stacked_gpu.table(found).splitlines()) == 2 + len(rows)
    stacked_gpu.draw(found, tmp_path / "stacked.png")
    assert (tmp_path / "stacked.png").read_bytes().startswith(b"\x89PNG")


def test_two_devices_are_compared(runs, tmp_path):
    for name, strategy, _ in demo_gpu.RUNS:
        done = runs("segmentation" if "segmentation" in name else "disease")
        for place in demo_gpu.PLACES:
            folder = tmp_path / f"{name}_{strategy}_{place}"
            shutil.copytree(done.folder, folder)
            (folder / "summary.json").write_text(json.dumps(done.summary | {"name": folder.name}))
    found = demo_gpu.measure(tmp_path)
    assert all(run["within_tolerance"] and run["same_data"] for run in found["runs"].values())
    assert found["one_actor_has_the_same_hash"] is None, "that run is not there"
    lines = (tmp_path / "demo_disease_fedit_gpu" / "rounds.jsonl").read_text().splitlines()
    changed = [
        json.dumps(line | {"loss": line["loss"] * 1.01}) if line.get("loss") else json.dumps(line) for line in map(json.loads, lines)
    ]
    (tmp_path / "demo_disease_fedit_gpu" / "rounds.jsonl").write_text("\n".join(changed) + "\n")
    again = demo_gpu.measure(tmp_path)["runs"]["demo_disease_fedit"]
    assert not again["within_tolerance"] and again["largest_distance"]["first_round"] == pytest.approx(0.01)
