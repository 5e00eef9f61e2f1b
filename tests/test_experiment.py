"""An experiment as a whole, in process: what a run writes, what it must not touch, what decides its numbers."""

import gc
import json
import math
import shutil
import zlib
from dataclasses import replace

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import threadpoolctl
from small_runs import GRID, Watched, run, tiny
from small_studies import COHORT

from raylora import cohort, experiment, planning
from raylora import config as configuration
from raylora.core.errors import InputError, RunError
from raylora.data import acdc, mnms, obtain
from raylora.data.manifest import PrepareOptions, read_manifest
from raylora.data.prepare import prepare
from raylora.federation.answers import Outcome
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.models import zoo
from raylora.models.seen import Seen
from raylora.tracking.record import CASES

VENDORS = sorted(COHORT)
PREPARED = PrepareOptions(spacing_mm=tuple(GRID["spacing_mm"]), size=tuple(GRID["size"]))


def rows(run) -> list[dict]:
    return pq.read_table(run.folder / "cases.parquet").to_pylist()


def numbers(value):
    """Every float in nested JSON."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


# ---- what a run leaves behind


def test_the_commit_is_that_of_the_beginning(prepared_folder, tmp_path, monkeypatch):
    """In hours of a run somebody may have made another one."""
    asked = []
    monkeypatch.setattr(experiment, "code", lambda: asked.append(True))
    plan = planning.make_plan(tiny(prepared_folder, "disease"))
    events = experiment.run_experiment(plan, tmp_path, lambda plan: InProcess(build_host(plan.spec, plan.weights)))
    next(events)
    events.close()
    assert asked


def test_studies_with_more_slices_than_asked_for_are_counted(cohort_folder, tmp_path, runs):
    fewer = run(tiny(cohort_folder, data__size=[16, 16, 3], training__rounds=1), tmp_path / "fewer")
    patients = [id for parts in fewer.plan.splits.values() for ids in parts.values() for id in ids]
    assert sorted(fewer.summary["cut_studies"]) == sorted(patients) and runs("segmentation").summary["cut_studies"] == []
    said = [event["text"] for event in fewer.events if event["event"] == "note"]
    assert any(text.startswith(f"{len(patients)} studies have more slices than data.size: ") for text in said)


def test_the_summary_has_what_the_contract_names(runs):
    for task, primary in (("segmentation", "dice"), ("disease", "balanced_accuracy")):
        found = runs(task)
        on_disk = json.loads((found.folder / "summary.json").read_text(), parse_constant=pytest.fail)
        assert on_disk == found.summary and all(math.isfinite(x) for x in numbers(on_disk))
        assert on_disk["status"] == "finished" and on_disk["clients"] == VENDORS and on_disk["rounds"] == 2
        assert {
            "schema",
            "name",
            "task",
            "strategy",
            "seed",
            "cross_client",
            "wall_seconds",
            "virtual_seconds",
            "driver",
            "actors",
        } <= on_disk.keys()
        assert {"mlflow", "numerics", "versions", "config_sha256", "data_sha256", "bytes_up", "bytes_down"} <= on_disk.keys()
        assert on_disk["adapter_sha256"].keys() == {"global", *VENDORS}
        assert on_disk["numerics"].keys() == {"device", "threads", "dtype", "stack", "cache", "torch"}
        block = on_disk["final"][primary]
        assert block.keys() >= {"mean", "pooled", "ci95", "n", "frozen", "per_client"} and block["per_client"].keys() == set(VENDORS)
        known = [value for value in block["per_client"].values() if value is not None]  # one test patient has no balanced accuracy
        assert len(known) >= 3 and block["mean"] == pytest.approx(sum(known) / len(known))
        assert sorted(on_disk["cross_client"]["columns"]) == VENDORS


def test_the_configuration_in_the_folder_is_the_run_s(runs):
    found = runs("disease")
    assert configuration.load(found.folder / "config.yaml") == found.config


def test_case_rows_are_validation_of_every_round_and_the_test_of_the_last(runs):
    found = runs(strategy={"name": "med_duallora"})
    assert pq.read_schema(found.folder / "cases.parquet").equals(CASES)
    table = rows(found)
    assert all(math.isfinite(row["value"]) for row in table)
    test = [row for row in table if row["split"] == "test"]
    assert {row["round"] for row in test} == {1} and {row["round"] for row in table if row["split"] == "validation"} == {0, 1}
    patients = {client: set(split["test"]) for client, split in found.plan.splits.items()}
    for model in ("frozen", "global", *VENDORS):  # every model on every client's patients
        for client in VENDORS:
            own = {row["patient"] for row in test if row["model_of"] == model and row["data_of"] == client and row["metric"] == "dice"}
            assert own == patients[client], (model, client)
    for client, split in found.plan.splits.items():
        assert {row["patient"] for row in table if row["split"] == "validation" and row["data_of"] == client} == set(split["validation"])
    validation = {(row["model_of"], row["data_of"]) for row in table if row["split"] == "validation"}
    assert {(client, client) for client in VENDORS} <= validation and not any(m != d for m, d in validation if m in VENDORS)


def test_disease_models_have_a_threshold_from_validation_if_it_has_both_classes(runs):
    table = rows(runs("disease", strategy={"name": "med_duallora"}))
    thresholds = {row["model_of"]: row["value"] for row in table if row["metric"] == "threshold"}
    labels = {(row["data_of"], row["value"]) for row in table if (row["split"], row["metric"]) == ("validation", "label")}
    both = {client for client, _ in labels if {(client, 0.0), (client, 1.0)} <= labels}
    assert (
        thresholds.keys() == {"frozen", "global", *both} and both < set(VENDORS) and all(0 <= value <= 1 for value in thresholds.values())
    )
    tuned = runs("disease", strategy={"name": "med_duallora"}).summary["final"]["balanced_accuracy_tuned"]["per_client"]
    assert {client for client, value in tuned.items() if value is not None} <= both, "0.5 would be a threshold that nobody chose"
    labels = {row["patient"]: row["value"] for row in table if row["metric"] == "label"}
    assert set(labels.values()) == {0.0, 1.0} and all((row["metric"] in ("probability", "label", "threshold")) for row in table)


def test_thresholds_and_validation_scores_follow_from_the_validation_rows(runs):
    found = runs("disease", strategy={"name": "med_duallora"})
    last = [row for row in rows(found) if row["split"] == "validation" and row["round"] == 1]
    of = {(row["model_of"], row["patient"], row["metric"]): row["value"] for row in last}
    thresholds = {row["model_of"]: row["value"] for row in last if row["metric"] == "threshold"}
    for model, threshold in thresholds.items():
        patients = sorted({patient for name, patient, metric in of if name == model and metric == "label"})
        label, p = (np.array([of[model, patient, metric] for patient in patients]) for metric in ("label", "probability"))
        reached = [np.mean([(p >= t)[label == 1].mean(), (p < t)[label == 0].mean()]) for t in (threshold, *p)]
        assert len(patients) >= 2 and reached[0] == max(reached), "no cut does better on validation patients"
    for client in VENDORS:
        own = [row for row in last if row["model_of"] == row["data_of"] == client]
        label, p = ({row["patient"]: row["value"] for row in own if row["metric"] == m} for m in ("label", "probability"))
        (line,) = [line for line in found.lines if line["kind"] == "client" and line["round"] == 1 and line["client"] == client]
        right = {
            "accuracy": np.mean([(p[k] >= 0.5) == label[k] for k in p]),
            "likelihood": np.mean([p[k] if label[k] else 1 - p[k] for k in p]),
        }
        assert line["validation"] == pytest.approx(right)
    found = runs()
    dice = [row for row in rows(found) if row["split"] == "validation" and row["round"] == 1 and row["structure"] == "all"]
    for line in found.lines:
        if line["kind"] == "client" and line["round"] == 1:
            own = [row["value"] for row in dice if row["model_of"] == row["data_of"] == line["client"]]
            assert line["validation"] == {"dice": pytest.approx(np.mean(own))}


def test_overlays_are_the_best_the_median_and_the_worst(prepared_folder, tmp_path):
    from safetensors.numpy import load_file

    found = run(tiny(prepared_folder, training__rounds=1, evaluation__overlays=3), tmp_path / "run")
    arrays = load_file(tmp_path / "run" / "plots" / "overlays.safetensors")
    modes = {path.stat().st_mode for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(modes) == 1, "who may read the summary may read the weights and the pictures"
    drawn = {tuple(key.split("/")[:2]) for key in arrays}
    scores = sorted(
        (row["value"], row["data_of"], row["patient"])
        for row in rows(found)
        if row["split"] == "test" and row["model_of"] == row["data_of"] and row["metric"] == "dice" and row["structure"] == "all"
    )
    assert drawn == {scores[0][1:], scores[round((len(scores) - 1) / 2)][1:], scores[-1][1:]}
    assert {key.split("/", 2)[2] for key in arrays} == {f"{frame}/{what}" for frame in ("ED", "ES") for what in ("image", "pred", "truth")}
    run(tiny(prepared_folder, training__rounds=1, evaluation__overlays=1), tmp_path / "one")
    one = load_file(tmp_path / "one" / "plots" / "overlays.safetensors")
    assert {tuple(key.split("/")[:2]) for key in one} == {scores[round((len(scores) - 1) / 2)][1:]}, "of one it is the median"


def test_training_learns(runs):
    """On patients that it has never seen a model is better after training than before, at every client."""
    found = runs(strategy={"name": "centralised"}, training__rounds=12, training__local_steps=8)
    scores = found.summary["final"]["dice"]
    losses = [line["loss"] for line in found.lines if line["kind"] == "client"]
    assert losses[-1] < losses[0] / 2 and scores["mean"] > scores["frozen"] + 0.3


# ---- what a run must not touch


def test_test_cases_are_not_touched_before_the_last_round(prepared_folder, tmp_path):
    told = []

    class Told(Watched):
        def train(self, stacks):
            told.append(f"train {stacks[0][0][1].task.round}")
            yield from super().train(stacks)

        def evaluate(self, requests, split, *, full):
            told.append(split)
            return super().evaluate(requests, split, full=full)

    plan = planning.make_plan(tiny(prepared_folder, "disease", strategy={"name": "med_duallora"}))
    list(experiment.run_experiment(plan, tmp_path, lambda p: Told(build_host(p.spec, p.weights))))
    assert told == ["train 0", "validation", "train 1", "validation", "test", "test", "validation"]  # the frozen model comes last


@pytest.mark.parametrize(
    ("task", "strategy"),
    [("segmentation", {"name": "rate_my_lora"}), ("disease", {"name": "med_duallora"})],
    ids=["segmentation", "disease"],
)
def test_what_is_seen_in_test_patients_decides_nothing(cohort_folder, runs, tmp_path, task, strategy):
    """The cohort once more, with noise for their images and other labels: the same adapters, thresholds, ratings and validation scores."""
    before = runs(task, strategy=strategy)
    tested = {patient for split in before.plan.splits.values() for patient in split["test"]}
    shutil.copytree(cohort_folder, tmp_path / "cohort")
    changed = 0
    for path in (tmp_path / "cohort").rglob("*_sa*.nii.gz"):
        if any(patient.endswith(path.parent.name) for patient in tested):
            image = nibabel.load(path)
            voxels = np.asanyarray(image.dataobj)
            noise = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 2000, voxels.shape).astype(voxels.dtype)
            nibabel.save(nibabel.Nifti1Image(np.roll(voxels, 3, axis=0) if "_gt" in path.name else noise, image.affine), path)
            changed += 1
    assert changed == 2 * len(tested)
    prepare(mnms.scan(tmp_path / "cohort"), tmp_path / "prepared", PREPARED)
    after = run(tiny(tmp_path / "prepared", task, strategy=strategy), tmp_path / "run")
    assert after.plan.splits == before.plan.splits and after.hashes == before.hashes

    def values(found, split):
        return {tuple(row[key] for key in list(row)[:-1]): row["value"] for row in rows(found) if row["split"] == split}

    assert values(after, "validation") == values(before, "validation")
    old, new = values(before, "test"), values(after, "test")
    assert old.keys() == new.keys() and sum(old[key] != new[key] for key in old) > len(old) / 3, "a change that could have been seen"
    told = [[line.get("weights"), line.get("validation")] for line in before.lines if line["kind"] == "round"]
    assert told == [[line.get("weights"), line.get("validation")] for line in after.lines if line["kind"] == "round"]


@pytest.mark.parametrize("judged", [False, True])
def test_a_round_begins_before_the_validation_of_the_last_one_is_there(prepared_folder, tmp_path, judged):
    """Unless somebody judges it first: then nothing is computed in vain."""
    told = []

    class Told(Watched):
        def train(self, stacks):
            told.append(f"train {stacks[0][0][1].task.round}")
            return super().train(stacks)

        def evaluate(self, requests, split, *, full):
            rows = super().evaluate(requests, split, full=full)
            return lambda: (told.append(f"scored {split}"), rows())[1]

    plan = planning.make_plan(tiny(prepared_folder, "disease", training__rounds=3))
    for event in experiment.run_experiment(plan, tmp_path, lambda p: Told(build_host(p.spec, p.weights)), judged=judged):
        told += [f"told {event['round']}"] if event["event"] == "round" else []
    (first, *_, last), rounds = ("train 0", "scored test"), [[f"train {t}", "scored validation", f"told {t - 1}"] for t in (1, 2)]
    if judged:
        rounds = [[*told_of, begins] for begins, *told_of in rounds]
    assert told[:9] == [first, *rounds[0], *rounds[1], "scored validation", "told 2"] and told[9] == last


def test_rating_cases_serve_the_rating_alone(runs):
    fedit, rating = runs(), runs(strategy={"name": "rate_my_lora"})
    assert all("score_received" not in update.metrics for update in fedit.received)
    assert all(0 <= update.metrics[key] <= 1 for update in rating.received for key in ("score_received", "score_trained"))
    for split in fedit.plan.splits.values():
        parts = [set(split[part]) for part in ("train", "validation", "rating", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts))
    scored = {row["patient"] for row in rows(rating)}
    assert scored.isdisjoint({i for split in rating.plan.splits.values() for i in split["rating"]})


def test_the_fair_comparison_trains_on_the_rating_cases_too(runs):
    more = runs("disease", data__rating_to_training=True)
    assert [c.num_examples for c in more.plan.clients] == [len(s["train"]) + len(s["rating"]) for s in more.plan.splits.values()]
    assert more.hashes != runs("disease").hashes


def test_held_out_clients_are_scored_and_never_train(runs):
    found = runs("disease", clients={"by": "vendor", "held_out": ["GE"]})
    assert found.summary["held_out"] == ["GE"] and found.summary["clients"] == ["Canon", "Philips", "Siemens"]
    assert {update.client_id for update in found.received} == {"Canon", "Philips", "Siemens"}
    unseen = {row["patient"] for row in rows(found) if row["data_of"] == "GE" and row["model_of"] == "global"}
    assert len(unseen) == COHORT["GE"] and not any(row["data_of"] == "GE" for row in rows(found) if row["split"] == "validation")
    assert "GE" not in found.summary["final"]["balanced_accuracy"]["per_client"]


def test_the_hearts_that_shipped_weights_were_made_from_are_refused_under_any_look(prepared_folder, monkeypatch):
    monkeypatch.setattr(planning.obtain, "prepared", lambda *args: [prepared_folder])
    phantoms = {"dataset": "phantom", "phantom": {"patients": 26, "seed": 1000, "shift": 1.0}}
    shipped = {
        "data": {**tiny(prepared_folder).as_dict()["data"], "root": None, **phantoms},
        "model": {"name": "unet", "weights": "phantom_unet"},
    }
    with pytest.raises(InputError, match=r"^data.phantom.seed: phantom_unet was made from the phantoms of seed 1000, .*allow_seen=true"):
        planning.make_plan(tiny(prepared_folder, **shipped))
    allowed = planning.make_plan(tiny(prepared_folder, **shipped, data__allow_seen=True))
    assert set(allowed.seen_cases) == {
        i for split in allowed.splits.values() for part, ids in split.items() if part != "train" for i in ids
    }
    shipped["data"] = {**shipped["data"], "phantom": {**phantoms["phantom"], "seed": 2000}}
    assert not planning.make_plan(tiny(prepared_folder, **shipped)).seen_cases, "that is the other network's"


def test_a_base_that_has_seen_phantoms_has_seen_no_patient_of_another_set(prepared_folder, write, tmp_path, monkeypatch):
    for number in range(10):
        write.acdc(tmp_path / "acdc", number, group=("NOR", "DCM")[number % 2])
    prepare(acdc.scan(tmp_path / "acdc"), tmp_path / "prepared", PREPARED)
    monkeypatch.setattr(planning.obtain, "prepared", lambda *args: [prepared_folder, tmp_path / "prepared"])
    sets = [{"dataset": "phantom", "phantom": {"seed": 1000}}, {"dataset": "acdc", "root": "acdc"}]
    data = {**tiny(prepared_folder).as_dict()["data"], "root": None, "dataset": sets, "allow_seen": True}
    plan = planning.make_plan(tiny(prepared_folder, data=data, model={"name": "unet", "weights": "phantom_unet"}))
    scored = {id: plan.cohort.rows[id].dataset for id in plan.cohort.scored}
    assert set(scored.values()) == {"acdc", "mnms"} and set(plan.seen_cases) == {id for id, of in scored.items() if of == "mnms"}


def test_within_a_long_round_one_is_told_how_many_clients_have_answered(prepared_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "TOLD_S", 0.0)
    found = run(tiny(prepared_folder, "disease", training__rounds=2), tmp_path / "run")
    told = [(event["round"], event["done"], event["asked"]) for event in found.events if event["event"] == "clients"]
    assert told == [(t, done, 4) for t in range(2) for done in (1, 2, 3)]


def test_when_a_round_begins_nothing_lies_there_of_the_one_before(prepared_folder, tmp_path):
    alive = []

    class Counting(InProcess):
        def train(self, stacks):
            gc.collect()
            alive.append(sum(type(thing) is Outcome for thing in gc.get_objects()))
            return super().train(stacks)

    run(tiny(prepared_folder, "disease", training__rounds=3), tmp_path / "run", executor=lambda p: Counting(build_host(p.spec, p.weights)))
    assert len(alive) == 3 and len(set(alive)) == 1, "updates of a round before"


def test_weights_that_have_seen_test_cases_are_refused_by_name(prepared_folder, tmp_path):
    plain = planning.make_plan(tiny(prepared_folder, "disease"))
    described = read_manifest(prepared_folder)
    known = described.row(plain.splits["GE"]["test"][0])
    path = tmp_path / "w.safetensors"
    zoo.save_weights(path, plain.weights, half=False, seen=Seen(cases=frozenset({known.source_sha256})), about={})
    with pytest.raises(InputError, match=f"has seen 1 validation or test cases \\({known.id}"):
        planning.make_plan(tiny(prepared_folder, "disease", model__weights=str(path)))
    allowed = planning.make_plan(tiny(prepared_folder, "disease", model__weights=str(path), data__allow_seen=True))
    assert allowed.seen_cases == (known.id,)
    trained_on = described.row(plain.splits["GE"]["train"][0])
    zoo.save_weights(path, plain.weights, half=False, seen=Seen(cases=frozenset({trained_on.source_sha256})), about={})
    assert planning.make_plan(tiny(prepared_folder, "disease", model__weights=str(path))).seen_cases == ()


def test_weights_that_have_seen_a_copy_which_is_no_case_are_refused_too(prepared_folder, monkeypatch):
    """Unlabelled studies of another set: what a base is pre-trained on, and never a case."""
    rows = obtain.studies([prepared_folder])
    copies = [
        replace(row, id=f"copy-{row.id}", dataset="mnms2", labelled=False, sources=(replace(row.sources[0], sha256=f"copy {row.id}"),))
        for row in rows
    ]
    monkeypatch.setattr(obtain, "studies", lambda folders: [*rows, *copies])
    found = cohort.gather(tiny(prepared_folder, "disease"), [prepared_folder, prepared_folder])
    scored = {id for split in found.splits.values() for id in (*split.validation, *split.rating, *split.test)}
    assert found.pairs == () and found.seen_by(Seen()) == []
    assert set(found.seen_by(Seen(cases=frozenset(row.source_sha256 for row in copies)))) == scored
    assert set(found.seen_by(Seen(splits=frozenset({("mnms2", "*")})))) == scored


# ---- what decides the numbers


def test_the_same_twice_and_another_with_another_seed(runs, prepared_folder, tmp_path):
    first = runs(strategy={"name": "rate_my_lora"})
    again = run(tiny(prepared_folder, strategy={"name": "rate_my_lora"}), tmp_path / "again")
    assert again.hashes == first.hashes and rows(again) == rows(first)
    other = run(tiny(prepared_folder, strategy={"name": "rate_my_lora"}, seed=1), tmp_path / "other")
    assert all(other.hashes[name] != first.hashes[name] for name in first.hashes)


@pytest.mark.parametrize(
    "change",
    [
        {"training__lr": 0.021},
        {"training__augment": 0.5},
        {"training__clip": 1e-3},
        {"training__weight_decay": 0.1},
        {"training__schedule": "cosine"},
        {"training__optimiser": "sgd"},
        {"lora__dropout": 0.3},
        {"lora__alpha": 3.0},
        {"model__head": "frozen"},
        {"strategy": {"name": "fedit", "weights": "uniform"}},
        {"data__split_seed": 1},
    ],
)
def test_every_option_reaches_the_numbers(runs, change):
    assert runs("disease", **change).hashes["global"] != runs("disease").hashes["global"]


@pytest.mark.parametrize(
    "change", [{"evaluation__every": 0}, {"checkpoint": {"every": 2}}, {"placement": {"cpus_per_client": 0.5}}, {"name": "other"}]
)
def test_what_is_not_training_does_not(runs, change):
    assert runs("disease", **change).hashes == runs("disease").hashes
    same = "evaluation__every" not in change
    assert (runs("disease", **change).config.sha256() == runs("disease").config.sha256()) is same


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-3), ("bfloat16", 0.2)])
def test_other_precisions_train_to_nearly_the_same(runs, dtype, tolerance):
    base, other = runs("disease"), runs("disease", training__dtype=dtype)
    losses = [[line["loss"] for line in found.lines if "loss" in line] for found in (base, other)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert other.summary["numerics"]["dtype"] == dtype


def test_stacked_clients_train_to_the_same_up_to_rounding(runs):
    alone, stacked = runs(), runs(training__stack=4)
    losses = [[line["loss"] for line in found.lines if "loss" in line] for found in (alone, stacked)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_server_s_algebra_has_one_thread(prepared_folder, tmp_path):
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        run(tiny(prepared_folder, "disease", training__rounds=1), tmp_path)
        counts = {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
    assert counts == {1}


# ---- what is refused before anything starts


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("segmentation", {"strategy": {"name": "fedit"}, "lora__rank": [1, 2, 1, 1]}, "expected one lora.rank for all clients"),
        ("segmentation", {"lora__rank": [1, 2]}, "expected one rank for each of the 4 clients"),
        ("segmentation", {"lora__rank": {"GE": 1}}, "expected the clients Canon, GE, Philips, Siemens, found GE"),
        (
            "segmentation",
            {"strategy": {"name": "rate_my_lora"}, "data__fractions": [0.6, 0.2, 0.0, 0.2]},
            r"clients Canon \(8 patients\), GE \(6 patients\), Philips \(8 patients\), Siemens \(10 patients\): no rating cases",
        ),
        (
            "disease",
            {"strategy": {"name": "rate_my_lora", "rule": "peer"}, "data__rating_to_training": True},
            r"clients Canon \(8 patients\), GE \(6 patients\), Philips \(8 patients\), Siemens \(10 patients\): no rating cases",
        ),
        ("segmentation", {"strategy": {"name": "fedit", "reduce": {"name": "krum", "byzantine": 2}}}, "strategy.reduce"),
        ("segmentation", {"strategy": {"name": "fedti"}}, "did you mean fedit"),
        ("segmentation", {"strategy": {"name": "fedit", "mu": 1.0}}, "strategy.mu: fedit has no such option"),
        ("segmentation", {"clients": {"by": "vendor", "held_out": ["GEE"]}}, "clients.held_out: no client 'GEE'"),
        ("segmentation", {"model__checkpointing": True}, "model.checkpointing: unet does not offer it"),
        ("segmentation", {"training__device": "cuda"}, "training.device: cuda was asked for"),
        (
            "segmentation",
            {"clients": {"by": "iid", "count": 2, "alpha": 0.1}},
            "clients.alpha: it is for clients.by: dirichlet, not for iid: expected nothing, found 0.1",
        ),
        ("disease", {"strategy": {"name": "fedavg_full"}, "model__head": "frozen"}, "model.head: fedavg_full trains every weight"),
        ("segmentation", {"data__size": [16, 16, 8]}, "data.size: expected"),
        ("disease", {"data__split": "official"}, "client Canon: no test cases"),
        ("disease", {"clients": {"by": "pathology"}}, "expected training cases of both classes"),
    ],
)
def test_refused_in_one_line(prepared_folder, task, change, message):
    with pytest.raises(InputError, match=message) as caught:
        planning.make_plan(tiny(prepared_folder, task, **change))
    assert "\n" not in str(caught.value)


def test_a_loss_that_explodes_names_round_client_and_step(prepared_folder, tmp_path):
    with pytest.raises(RunError, match=r"^round \d+, client \w+(, step \d+)?: .* try a smaller training.lr"):
        run(tiny(prepared_folder, "disease", training__lr=1e30, training__optimiser="sgd"), tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
