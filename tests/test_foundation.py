"""`raylora pretrain` refuses what it would ignore, and what it could not end."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import GRID

from raylora import foundation
from raylora.config import Pretrain
from raylora.core.errors import InputError
from raylora.data.shards import PreparedSet
from raylora.schema import validated


def settings(root, task="segmentation", **more):
    values = {"task": task, "steps": 1, "data": {"dataset": "mnms", "root": str(root), **GRID}, "model": {"name": "unet"}}
    for key, value in more.items():
        section, name = key.split("__")
        values[section] = {**values[section], name: value}
    return validated(Pretrain, values, "c.yaml")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model__weights", "cinema", "model.weights: pre-training starts from drawn weights: expected nothing, found 'cinema'"),
        ("model__head", "frozen", "model.head: pre-training trains every weight"),
        ("model__checkpointing", True, "model.checkpointing: unet does not offer it"),
        ("data__split", "official", "data.split: pre-training takes every study: expected nothing, found 'official'"),
        ("data__fractions", [0.5, 0.1, 0.1, 0.3], "data.fractions: pre-training takes every study"),
        ("data__allow_seen", True, "data.allow_seen: pre-training takes every study"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(prepared_folder, tmp_path, key, value, said):
    with pytest.raises(InputError) as caught:
        foundation.make(settings(prepared_folder, **{key: value}), tmp_path / "w.safetensors")
    assert str(caught.value).startswith(said) and not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_pre_trained_is_refused_before_the_data_are_looked_for(tmp_path):
    with pytest.raises(InputError, match="model.name: masked auto-encoding is for the vit, found unet"):
        foundation.make(settings(tmp_path / "absent", task="disease"), tmp_path / "w.safetensors")


def test_where_it_cannot_be_written_is_said_before_the_work(prepared_folder, tmp_path):
    (tmp_path / "file").touch()
    for out in ("/proc/x/w.safetensors", tmp_path / "file" / "w.safetensors"):
        with pytest.raises(InputError, match=r"^--output: .*w.safetensors: cannot be written"):
            foundation.make(settings(prepared_folder), Path(out))


def test_without_a_label_there_is_nothing_to_learn_segmentation_from(prepared_folder, tmp_path, monkeypatch):
    study = PreparedSet.study

    def unlabelled(self, id):
        found = study(self, id)
        return replace(found, frames={name: replace(frame, label=None) for name, frame in found.frames.items()})

    monkeypatch.setattr(PreparedSet, "study", unlabelled)
    with pytest.raises(InputError, match="no study with a label among 32: nothing to pre-train segmentation on"):
        foundation.make(settings(prepared_folder), tmp_path / "w.safetensors")
