"""What the doctor says of machines that lack something, of files that must not be opened, and of clusters that do not match."""

import json
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from raylora import cli, doctor
from raylora.cluster import probe
from raylora.core.errors import InputError
from raylora.data.features import FeatureFolder

GOOD = {
    "node": "here",
    "cpus": 2,
    "quota": None,
    "gpus": 0,
    "memory_bytes": 8 << 30,
    "shm_bytes": 1 << 30,
    "versions": {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0"},
    "code": "abc",
}


def wrong(findings):
    return [(one.what, one.found) for one in findings if one.wrong]


def test_a_good_machine_has_nothing_to_complain_of():
    assert wrong(doctor.computing(GOOD)) == [] and not any(one.do for one in doctor.computing(GOOD))


@pytest.mark.parametrize(
    ("change", "what", "text", "advice"),
    [
        ({"shm_bytes": 64 << 20}, "shared memory (/dev/shm)", "64 MiB free, 256 MiB are needed", "--shm-size"),
        ({"memory_bytes": 300 << 20}, "memory", "300 MiB free, 1.0 GiB are needed", "clients_per_actor"),
    ],
)
def test_what_a_machine_lacks(change, what, text, advice):
    (bad,) = [one for one in doctor.computing({**GOOD, **change}) if one.wrong]
    assert (bad.what, bad.found) == (what, text) and advice in bad.do and bad.lines()[0].startswith("! ") and len(bad.lines()) == 2


def test_a_quota_below_the_affinity_is_told_and_no_more():
    (cpus, *_) = doctor.computing({**GOOD, "cpus": 8, "quota": 2.0})
    assert "a quota of 2" in cpus.found and cpus.do and not cpus.wrong


def test_a_disk_that_is_nearly_full(tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100 << 30, 98 << 30, 2 << 30))
    (bad,) = doctor.disks([tmp_path, tmp_path / "not" / "there"])
    assert bad.wrong and bad.found == "2.0 GiB free of 100.0 GiB" and "95 %" in bad.do
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100 << 30, 50 << 30, 50 << 30))
    assert wrong(doctor.disks([tmp_path])) == []


def test_packages():
    assert doctor.unmet(["numpy>=2.0", "nothing-like-this>=1; extra == 'dev'"]) == []
    assert doctor.unmet(["numpy<1", "nothing-like-this>=1"]) == [f"numpy {np.__version__}, expected <1", "nothing-like-this is missing"]
    assert doctor.differing([f"numpy=={np.__version__}", "# a comment", "nothing-like-this==1"]) == []
    assert doctor.differing(["numpy==0.1"]) == [f"numpy {np.__version__} (tested: 0.1)"]


def write_all(folder: Path) -> set[str]:
    """Files of many kinds; the names of those that hold a pickle."""
    value = {"a": np.zeros(3)}
    for protocol in range(6):
        (folder / f"protocol{protocol}.{'pkl' if protocol < 2 else 'bin'}").write_bytes(pickle.dumps(value, protocol))
    torch.save({"a": torch.zeros(2)}, folder / "weights.pt")
    torch.save({"a": torch.zeros(2)}, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    safetensors.numpy.save_file(value, folder / "good.safetensors")
    np.savez(folder / "good.npz", **value)
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.json").write_text("{}")
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 and nothing")
    return {f"protocol{p}.{'pkl' if p < 2 else 'bin'}" for p in range(6)} | {"weights.pt", "old.ckpt"}


def test_pickles_are_known_by_what_is_in_them(tmp_path):
    expected = write_all(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if doctor.is_pickle(path)} == expected
    assert {Path(what).name for what, found in wrong(doctor.files_of(tmp_path)) if found == "a pickle"} == expected


def test_of_very_many_files_it_is_said_that_some_were_not_looked_at(tmp_path, monkeypatch):
    write_all(tmp_path)
    monkeypatch.setattr(doctor, "MOST_FILES", 3)
    assert doctor.files_of(tmp_path)[0].found == f"the first 3 of {len(list(tmp_path.iterdir()))} files were looked at"


def test_torn_checkpoints_of_a_run(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("disease").folder, run)
    (fine,) = doctor.files_of(tmp_path)
    assert not fine.wrong and "no torn checkpoint" in fine.found
    state = run / "checkpoints" / "round_0002" / "state.json"
    state.write_bytes(state.read_bytes()[:-2])
    ((what, found),) = wrong(doctor.files_of(tmp_path))
    assert what.endswith("round_0002") and found.startswith("torn or altered")


def test_a_cluster_is_held_against_this_machine():
    def said(auth, *nodes):
        return wrong(doctor.cluster(GOOD, nodes, auth))

    assert said("token", GOOD, {**GOOD, "node": "other"}) == []
    assert [what for what, _ in said(None, GOOD)] == ["Ray address"]
    other = {**GOOD, "node": "other", "versions": {**GOOD["versions"], "torch": "2.12.0"}, "code": "xyz"}
    assert said("token", GOOD, other) == [("node other", "torch 2.12.0 (here 2.13.0), another raylora")]
    assert said("token", {**GOOD, "shm_bytes": 1}) == [("node here, shared memory (/dev/shm)", "0 MiB free, 256 MiB are needed")]
    assert said("token", {"node": "other", "error": "ModuleNotFoundError: x"}) == [
        ("node other", "does not answer: ModuleNotFoundError: x")
    ]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probe, "here", lambda: GOOD)
    monkeypatch.setattr(doctor, "disks", lambda places: [])
    monkeypatch.setenv("RAYLORA_CACHE", str(tmp_path / "cache"))
    call = lambda *words: cli.guarded(lambda: cli.app(["doctor", *words], standalone_mode=False))  # noqa: E731
    assert call() == 0 and capsys.readouterr().out.splitlines()[-1] == "nothing would go wrong"
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(1))
    assert call(str(tmp_path), "--json") == 2
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["wrong"] == 1 and [one["found"] for one in found["findings"] if one["wrong"]] == ["a pickle"]
    assert call(str(tmp_path / "nowhere")) == 2
    assert "no such folder" in capsys.readouterr().err


def test_kept_features_are_counted(tmp_path):
    assert doctor.kept(tmp_path).found.startswith("0, 0 MiB; at most 1")
    FeatureFolder(tmp_path / "features").write("k" * 64, "i" * 64, [np.zeros(1 << 20, np.float32)])
    assert doctor.kept(tmp_path).found.startswith("1, 4 MiB; at most 1")


def test_this_machine_can_be_read():
    here = probe.here()
    assert here.keys() == GOOD.keys() and here["cpus"] >= 1 and here["memory_bytes"] > 0 and len(here["code"]) == 64
    with pytest.raises(InputError, match="no such folder"):
        doctor.examine([Path("/nowhere")])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_at_which_nobody_listens_is_said_at_once(address):
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"^--address {address}: nobody listens there \("):
        doctor.examine(address=address)
    assert time.monotonic() - began < 60, "Ray would try for two minutes"
