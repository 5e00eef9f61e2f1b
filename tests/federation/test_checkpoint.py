"""Checkpoints come back as they went, damage is noticed, and a run that goes on ends as if it had never stopped."""

import json
import shutil

import numpy as np
import pytest
from small_runs import run, tiny

from raylora import config as configuration
from raylora import experiment, planning
from raylora.core.errors import InputError
from raylora.core.types import ClientState, State
from raylora.federation import checkpoint
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.federation.rounds import Progress


def tree(seed: int, *names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(2, 3)).astype(np.float32) for name in names}


def progress(round: int = 3) -> Progress:
    """One with something in every field, and names that could be confused."""
    return Progress(
        round=round,
        server=State(
            trees={"adapter": tree(1, "a.lora_A", "a.lora_B"), "of:GE": tree(2, "a.lora_A"), "delta": {}},
            values={"round": 3, "w": {"GE": 0.5}},
        ),
        states={
            "GE": ClientState(trees={"private": tree(3, "local.a.lora_A"), "c_k": tree(4, "a.lora_A")}, base_version=2, round=2),
            "GE-2": ClientState(trees={"private": {}}, base_version=1, round=0),
        },
        base=tree(5, "a.weight"),
        base_version=12,
        folded=tree(6, "a.lora_A", "a.lora_B"),
        deltas={1: tree(7, "a.lora_A", "a.lora_B"), 12: tree(8, "a.lora_A", "a.lora_B")},
        versions={"GE": 12, "GE-2": 1},
        bytes_up=123,
        bytes_down=2**40,
    )


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def test_what_is_loaded_is_what_was_saved(tmp_path):
    saved = progress()
    folder = checkpoint.save(tmp_path, saved, rows=17)
    assert folder.name == "round_0003" and sorted(path.suffix for path in folder.iterdir()) == [*[".json"] * 2, *[".safetensors"] * 3]
    loaded, rows = checkpoint.load(folder)
    assert rows == 17 and same(loaded, saved)
    assert not same(loaded, progress(4))


FILES = ("server.safetensors", "clients.safetensors", "base.safetensors", "state.json", "checksums.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncate", "remove", "empty"])
def test_damage_is_noticed_and_the_one_before_is_used(tmp_path, name, damage):
    checkpoint.save(tmp_path, progress(2), rows=8)
    path = checkpoint.save(tmp_path, progress(3), rows=12) / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"")
    found, words = checkpoint.latest(tmp_path)
    assert found is not None and found[0].round == 2 and found[1] == 8
    assert len(words) == 1 and "round_0003" in words[0] and "\n" not in words[0]


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_of_a_run_s_checkpoint_is_noticed(runs, tmp_path, name):
    """Sixty bytes all over each file; each changed to three other values."""
    folder = tmp_path / "round_0002"
    shutil.copytree(runs("disease", strategy={"name": "rate_my_lora", "temperature": 0.1}).folder / "checkpoints" / "round_0002", folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    checkpoint.load(folder)
    data = bytearray((folder / name).read_bytes())
    for at in sorted({*range(0, len(data), max(1, len(data) // 60)), len(data) - 1}):
        was = data[at]
        for other in (was ^ 1, was ^ 0x20, 0x09 if was != 0x09 else 0x0A):  # other case, other white space: JSON would not mind
            data[at] = other
            (folder / name).write_bytes(data)
            with pytest.raises(ValueError, match="do not match"):
                checkpoint.load(folder)
        data[at] = was
    (folder / name).write_bytes(data)
    checkpoint.load(folder)


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path):
    for round in (9_999, 10_000):
        checkpoint.save(tmp_path, progress(round), rows=round)
    for name in ("round_x", ".round_0001.partial", "cases"):
        (tmp_path / name).mkdir()
    assert checkpoint.latest(tmp_path)[0][0].round == 10_000
    checkpoint.prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".round_0001.partial", "cases", "round_10000", "round_x"]


def test_without_a_whole_one_there_is_none(tmp_path):
    assert checkpoint.latest(tmp_path) == (None, [])
    (checkpoint.save(tmp_path, progress(), rows=1) / "state.json").write_text("{")
    found, words = checkpoint.latest(tmp_path)
    assert found is None and len(words) == 1


def test_a_save_that_was_torn_leaves_the_last_whole_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, progress(2), rows=8)
    monkeypatch.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power")))
    with pytest.raises(OSError, match="power"):
        checkpoint.save(tmp_path, progress(3), rows=12)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["round_0002"], "a full disk needs its space back"
    assert checkpoint.latest(tmp_path)[0][0].round == 2
    checkpoint.save(tmp_path, progress(3), rows=12)
    assert checkpoint.latest(tmp_path)[0][0].round == 3


def test_old_ones_are_removed(tmp_path):
    for t in range(1, 6):
        checkpoint.save(tmp_path, progress(t), rows=t)
    checkpoint.prune(tmp_path, "all")
    assert len(list(tmp_path.glob("round_*"))) == 5
    checkpoint.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.glob("round_*")) == ["round_0004", "round_0005"]


# ---- a run that goes on

METHODS = {
    "rate_my_lora": {"strategy": {"name": "rate_my_lora", "temperature": 0.05}, "sampling": {"kind": "uniform", "fraction": 0.5}},
    "peer": {"strategy": {"name": "rate_my_lora", "rule": "peer"}},
    "med_duallora": {"strategy": {"name": "med_duallora", "head": "private"}},
    "scaffold": {"strategy": {"name": "scaffold"}, "training__optimiser": "sgd"},
    "fedadam": {"strategy": {"name": "fedadam"}},
    "compressed": {"compress": {"kind": "top_k", "share": 0.1}, "privacy": {"clip": 0.5, "sigma": 0.1, "delta": 0.01}},
}


def timeless(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def interrupted(config, out, after: int):
    """Run until `after` rounds have been told of, then leave."""
    plan = planning.make_plan(config)
    out.mkdir()
    events = experiment.run_experiment(plan, out, lambda p: InProcess(build_host(p.spec, p.weights)))
    told = 0
    while told < after:
        told += next(events)["event"] == "round"
    events.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_goes_on_after_any_round_ends_the_same(runs, tmp_path, method):
    options = {**METHODS[method], "training__rounds": 3}
    whole = runs("disease", **options)
    for after in range(4):
        folder = tmp_path / str(after)
        interrupted(whole.config, folder, after)
        resumed = run(whole.config, folder, resume=True)
        assert resumed.hashes == whole.hashes, after
        assert timeless(resumed.lines) == timeless(whole.lines)
        assert resumed.summary["wall_seconds"] > sum(
            line["seconds"] for line in resumed.lines if line["kind"] == "round" and line["round"] < after
        )
        assert (folder / "cases.parquet").read_bytes() == (whole.folder / "cases.parquet").read_bytes()
        assert [resumed.summary[key] for key in ("bytes_up", "bytes_down", "final")] == [
            whole.summary[key] for key in ("bytes_up", "bytes_down", "final")
        ]
    assert not resumed.sent, "after the last round nothing is left to train"


def test_what_came_after_the_checkpoint_is_forgotten_and_done_again(runs, tmp_path, monkeypatch):
    """The record of round 2 is written, its checkpoint is not; then the checkpoint of round 1 is torn too: it starts afresh."""
    whole = runs("disease", training__rounds=3)
    for torn in (False, True):
        folder = tmp_path / str(torn)
        interrupted(whole.config, folder, 1)
        events = experiment.run_experiment(whole.plan, folder, lambda p: InProcess(build_host(p.spec, p.weights)), resume=True)
        with monkeypatch.context() as broken, pytest.raises(OSError, match="full"):
            broken.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(OSError("full")))
            list(events)
        lines = (folder / "rounds.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["round"] == 1
        if torn:
            shutil.rmtree(folder / "checkpoints" / "round_0001")
        resumed = run(whole.config, folder, resume=True)
        assert resumed.hashes == whole.hashes and timeless(resumed.lines) == timeless(whole.lines)


def test_checkpoints_every_other_round(prepared_folder, tmp_path):
    config = tiny(prepared_folder, "disease", checkpoint={"every": 2, "keep": "all"}, training__rounds=3)
    whole = run(config, tmp_path / "whole")
    assert [path.name for path in sorted((whole.folder / "checkpoints").glob("round_*"))] == ["round_0002", "round_0003"]
    interrupted(config, tmp_path / "early", 1)
    resumed = run(config, tmp_path / "early", resume=True)
    assert resumed.hashes == whole.hashes and timeless(resumed.lines) == timeless(whole.lines)


def test_torn_ones_do_not_count_among_those_that_are_kept(prepared_folder, tmp_path):
    """All that was kept is torn: the run begins anew, and what it saves then must outlive the old numbers."""
    config = tiny(prepared_folder, "disease", checkpoint={"every": 1, "keep": 1}, training__rounds=3)
    interrupted(config, tmp_path / "run", 2)
    (torn,) = (tmp_path / "run" / "checkpoints").glob("round_*")
    (torn / "state.json").write_text("{")
    plan = planning.make_plan(config)
    events = experiment.run_experiment(plan, tmp_path / "run", lambda p: InProcess(build_host(p.spec, p.weights)), resume=True)
    while next(events)["event"] != "round":
        pass
    events.close()
    assert checkpoint.latest(tmp_path / "run" / "checkpoints")[0][0].round == 1


@pytest.mark.parametrize("key", ["data_sha256", "base_sha256"])
def test_other_data_or_weights_than_it_began_with_are_refused(prepared_folder, tmp_path, key):
    """Who was trained on could be tested on."""
    config = tiny(prepared_folder, "disease")
    interrupted(config, tmp_path / "run", 1)
    path = tmp_path / "run" / "patients.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, key: "other"}))
    with pytest.raises(InputError, match="the (studies of data.root|weights of model.weights) are not those that this run began with"):
        run(config, tmp_path / "run", resume=True)
    assert json.loads(path.read_text())[key] == "other", "nothing has been written"
    path.write_text(json.dumps({name: value for name, value in before.items() if not name.endswith("sha256")}))
    run(config, tmp_path / "run", resume=True)  # of an older version, which did not say


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("data__split_seed", 1, r"config.yaml: data.split_seed: expected 0, with which this run began, found 1; or start a new run"),
        ("data__fractions", [0.4, 0.125, 0.125, 0.35], "data.fractions: expected "),
        ("training__lr", 0.5, "training.lr: expected 0.02"),
        ("strategy", {"name": "fedprox", "mu": 0.1}, 'strategy.name: expected "fedit", with which'),
        ("training__stack", 2, "training.stack: expected 1"),
        (
            "strategy",
            {"name": "fedit", "weights": "uniform"},
            'strategy.weights: expected "size", with which this run began, found "uniform"',
        ),
        ("network", {"up_mbit": {"GE": 1.0}}, "network.up_mbit.GE: expected nothing, with which this run began, found 1.0"),
    ],
)
def test_a_run_goes_on_with_the_values_that_it_began_with(prepared_folder, tmp_path, key, value, found):
    interrupted(tiny(prepared_folder, "disease"), tmp_path / "run", 1)
    patients = (tmp_path / "run" / "patients.json").read_text()
    with pytest.raises(InputError, match=found):
        run(tiny(prepared_folder, "disease", **{key: value}), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "patients.json").read_text() == patients


def test_where_data_lie_and_how_clients_are_placed_may_change(prepared_folder, tmp_path):
    """So may what is only looked at, and `stack: auto`, once it was measured: the number stands in config.yaml from then on, and stays."""
    out = tmp_path / "run"
    interrupted(tiny(prepared_folder, "disease", training__stack="auto"), out, 1)
    shutil.copytree(prepared_folder, tmp_path / "moved")
    free = {
        "placement__clients_per_actor": 2,
        "evaluation__every": 0,
        "training__cache_gb": 1.0,
        "strategy": {"name": "fedit", "weights": "size"},
    }
    stack = configuration.load(out / "config.yaml").training.stack
    with pytest.raises(InputError, match=f"training.stack: expected {stack}, with which this run began, found {stack + 1}"):
        run(tiny(tmp_path / "moved", "disease", training__stack=stack + 1, **free), out, resume=True)
    path = out / "patients.json"
    before = json.loads(path.read_text())
    assert run(tiny(tmp_path / "moved", "disease", training__stack=stack, **free), out, resume=True).summary["status"] == "finished"
    before["began"]["config"]["training.stack"] = '"auto"'  # ended while it was measured
    path.write_text(json.dumps(before))
    assert run(tiny(prepared_folder, "disease", training__stack=stack, **free), out, resume=True).summary["status"] == "finished"


def test_room_for_the_features_that_a_run_began_with(prepared_folder, tmp_path):
    """Whether views are kept is what is trained on."""
    views = {"training__augment": 0.5, "training__cached_views": 2, "lora__blocks": 1}
    interrupted(tiny(prepared_folder, "disease", **views), tmp_path / "run", 1)
    with pytest.raises(
        InputError, match="training.cache_gb: expected room for the features that this run began with .up to blocks.0.*none"
    ):
        run(tiny(prepared_folder, "disease", **views, training__cache_gb=1e-6), tmp_path / "run", resume=True)


def test_an_option_that_is_taken_out_is_missed(prepared_folder, tmp_path):
    interrupted(tiny(prepared_folder, "disease", strategy={"name": "fedprox", "mu": 0.5}), tmp_path / "run", 1)
    with pytest.raises(InputError, match="strategy.mu: expected 0.5, with which this run began, found "):
        run(tiny(prepared_folder, "disease", strategy={"name": "fedprox"}), tmp_path / "run", resume=True)


def test_patients_that_are_dealt_otherwise_are_refused(prepared_folder, tmp_path):
    """By another version, say: who was trained on could be tested on."""
    config = tiny(prepared_folder, "disease")
    interrupted(config, tmp_path / "run", 1)
    path = tmp_path / "run" / "patients.json"
    before = json.loads(path.read_text())
    moved = next(one for one in before["patients"] if one["part"] == "train")
    moved["part"] = "test"
    path.write_text(json.dumps(before))
    with pytest.raises(
        InputError, match=f"patient {moved['id']} is no longer in the test part of {moved['client']}, as when this run began"
    ):
        run(config, tmp_path / "run", resume=True)


def test_other_code_is_said(prepared_folder, tmp_path):
    config = tiny(prepared_folder, "disease")
    interrupted(config, tmp_path / "run", 1)
    path = tmp_path / "run" / "patients.json"
    before = json.loads(path.read_text())
    assert not any("began with" in event.get("text", "") for event in run(config, tmp_path / "run", resume=True).events)
    path.write_text(json.dumps({**before, "began": {**before["began"], "code_sha256": "of another version"}}))
    said = [event["text"] for event in run(config, tmp_path / "run", resume=True).events if event["event"] == "note"]
    assert "raylora's code is not the one that this run began with: what follows may have other bits" in said
