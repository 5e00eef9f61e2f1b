"""Four vendors' phantoms in three layouts at once: prepared over Ray, a small CineMA, Med-DualLoRA, reported by vendor and by data set."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_runs import Watched

from raylora import config as configuration
from raylora import experiment, launch, planning
from raylora.data.partition import PARTS
from raylora.federation.build import build_host

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "three_layouts.yaml"
CINEMA = {"patch": [4, 4, 1], "scale": [2, 2, 1], "conv_chans": [4, 6], "conv_n_blocks": 1, "embed": 12, "depth": 3, "heads": 2}


def small(**overrides):
    """The configuration as shipped, on coarser images and fewer patients: of seeds that leave every client both classes."""
    values = configuration.load(CONFIG).as_dict()
    for source, patients in zip(values["data"]["dataset"], (10, 14, 14), strict=True):
        source["phantom"] |= {"patients": patients, "seed": source["phantom"]["seed"] + 200}
    values["data"]["dataset"][1]["phantom"]["vendors"] = ["Siemens", "GE", "Canon"]
    values["data"] |= {"spacing_mm": [4.0, 4.0, 10.0], "size": [32, 32, 8], "fractions": [0.5, 0.1, 0.1, 0.3]}
    values["model"]["sizes"] = CINEMA
    values["training"] |= {"rounds": 2}
    values["evaluation"] |= {"bootstrap": 100}
    values["tracking"]["uri"] = None
    values["placement"] = {"clients_per_actor": 4}
    for key, value in overrides.items():
        values[key] |= value
    return configuration.from_dict(values)


@pytest.mark.ray
@pytest.mark.slow
def test_three_layouts_are_one_experiment(ray_cluster, tmp_path):
    summary = launch.run(small(), tmp_path / "run")
    patients = json.loads((tmp_path / "run" / "patients.json").read_text())["patients"]
    assert Counter(p["dataset"] for p in patients) == {"acdc": 10, "mnms": 14, "mnms2": 14}
    assert summary["clients"] == sorted({p["vendor"] for p in patients}) == ["Canon", "GE", "Philips", "Siemens"]
    assert {p["dataset"] for p in patients if p["client"] == "Siemens"} == {"acdc", "mnms", "mnms2"}
    for client in summary["clients"]:
        parts = [{p["id"] for p in patients if (p["client"], p["part"]) == (client, part)} for part in PARTS]
        assert sum(map(len, parts)) == len(set.union(*parts)) == sum(summary["patients"][client].values())
    # by data set: each set's own patients, and together those of the whole
    by_set, whole = summary["by_dataset"]["balanced_accuracy"], summary["final"]["balanced_accuracy"]
    assert set(by_set) == {"acdc", "mnms", "mnms2"}
    assert sum(block["n"] for block in by_set.values()) == sum(p["part"] == "test" for p in patients)
    valued = {client for client, value in whole["per_client"].items() if value is not None}  # the others' test patients are of one class
    assert whole["n"] == sum(p["part"] == "test" and p["client"] in valued for p in patients)
    rows = pq.read_table(tmp_path / "run" / "cases.parquet").to_pylist()
    own = [r for r in rows if r["split"] == "test" and r["model_of"] == r["data_of"] and r["metric"] in ("probability", "label")]
    of_set = {p["id"]: p["dataset"] for p in patients}
    for name, block in by_set.items():
        cases = {}
        for r in own:
            if of_set[r["patient"]] == name:
                cases.setdefault(r["patient"], {})[r["metric"]] = r["value"]
        right = {label: [(c["probability"] >= 0.5) == label for c in cases.values() if c["label"] == label] for label in (0, 1)}
        assert block["mean"] == pytest.approx(np.mean([np.mean(v) for v in right.values()]))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Test scores by data set" in page and all(word in page for word in ("mnms2", "Philips"))


@pytest.mark.slow
def test_an_unseen_data_set_is_scored_by_vendor_and_never_trained_on(tmp_path):
    plan = planning.make_plan(small(clients={"unseen": ["mnms"]}))
    watched = []

    def executor(p):
        watched.append(Watched(build_host(p.spec, p.weights)))
        return watched[0]

    *_, done = experiment.run_experiment(plan, tmp_path / "run", executor)
    summary = done["summary"]
    vendors = {row.vendor for row in plan.cohort.rows.values() if row.dataset == "mnms"}
    strangers = sorted(f"mnms-{vendor}" for vendor in vendors)
    assert len(vendors) > 1 and summary["held_out"] == strangers and summary["clients"] == ["GE", "Philips", "Siemens"]
    assert {update.client_id for update in watched[0].received} == {"GE", "Philips", "Siemens"}
    assert sum(summary["patients"][c]["test"] for c in strangers) == 14 and all(summary["patients"][c]["train"] == 0 for c in strangers)
    assert set(strangers) <= set(summary["cross_client"]["columns"])
