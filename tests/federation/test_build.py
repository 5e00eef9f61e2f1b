"""What a process builds of a description: the frozen weights where they lie, and the device that is there."""

import numpy as np
import pytest
import torch
from small_runs import run, tiny

from raylora import planning
from raylora.core.errors import InputError
from raylora.federation import build


@pytest.mark.parametrize("task", ["segmentation", "disease"])
def test_the_backbone_is_the_given_memory_and_nothing_beside_it(prepared_folder, task, monkeypatch):
    plan = planning.make_plan(tiny(prepared_folder, task))
    drawn = build.build_model(plan.spec.model).weights
    monkeypatch.setattr(build.zoo, "draw_weights", None)  # what would be replaced is not even drawn
    host = build.build_host(plan.spec, plan.weights)
    assert host.model.weights.keys() == plan.weights.keys() == drawn.keys()
    for name, weight in host.model.weights.items():
        assert np.shares_memory(weight.numpy(), plan.weights[name]), name
        assert weight.shape == drawn[name].shape and not weight.requires_grad
    inside = dict(host.model.backbone.named_parameters())
    assert {id(value) for value in inside.values()} <= {id(value) for value in host.model.weights.values()}


@pytest.mark.parametrize(
    ("wanted", "there", "found"), [("cpu", True, "cpu"), ("auto", True, "cuda"), ("auto", False, "cpu"), ("cuda", True, "cuda")]
)
def test_the_device_is_found_where_clients_run(monkeypatch, wanted, there, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert build.device_here(wanted) == found


def test_a_device_that_is_not_there_is_refused_by_the_process_that_has_none(prepared_folder, monkeypatch):
    """The machine that plans may have no GPU, and need none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny(prepared_folder, "disease", placement={"gpus_per_client": 0.5}, training__device="cuda")
    plan = planning.make_plan(config)
    with pytest.raises(InputError, match="training.device: cuda was asked for, torch .* finds none on "):
        build.build_host(plan.spec, plan.weights)


@pytest.mark.parametrize(("gpus", "said"), [(0.0, False), (0.5, True)])
def test_a_share_of_a_gpu_that_is_none_is_said(prepared_folder, tmp_path, monkeypatch, gpus, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = run(tiny(prepared_folder, "disease", placement={"gpus_per_client": gpus}, training__rounds=1), tmp_path / "run")
    notes = [event["text"] for event in found.events if event["event"] == "note"]
    assert any("torch finds no GPU where clients run, so they compute on the CPU" in note for note in notes) == said
    assert found.summary["numerics"]["device"] == "cpu" == found.summary["actors"][0]["device"]


def test_that_no_features_are_kept_is_said(prepared_folder, tmp_path):
    found = run(tiny(prepared_folder, "disease", training__augment=0.5, lora__blocks=1, training__rounds=1), tmp_path / "run")
    notes = [event["text"] for event in found.events if event["event"] == "note"]
    assert any(note.startswith("no features are kept: random augmentation draws each image anew") for note in notes)
