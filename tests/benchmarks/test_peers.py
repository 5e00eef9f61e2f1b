"""The comparison with other simulators, small: same work in raylora and by hand, figures only for equal losses, its table from its results."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import __main__ as command
from benchmarks.peers import bare, build, marks, measure, memory, plot, prepare, profile, with_raylora
from benchmarks.peers.settings import config
from benchmarks.peers.work import Model, ViT, mean
from benchmarks.peers.workloads import WORKLOADS, Folder, Report
from raylora.models import zoo


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_raylora_and_the_bare_loop_do_the_same_work(monkeypatch, capsys):
    """Through the command: a real Ray, both bare loops, one process and another order of sums each."""
    words = [
        "peers",
        "W1",
        "--clients",
        "4",
        "--rounds",
        "2",
        "--repeat",
        "1",
        "--workers",
        "2",
        "--systems",
        "raylora,bare",
        "--json",
        "--no-memory",
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert command.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["systems"]) == {"raylora", "bare"}
    for one in found["systems"].values():
        assert one["steps"] == 4 * 2 * 2 and min(one["seconds_per_round"], one["seconds_to_first_round"]) > 0
        assert one["seconds_in_all"] == pytest.approx(one["seconds_to_first_round"] + one["seconds_per_round"]), "of two rounds"
        ideal = found["gflop_per_round"] / found["matrix_gflops"]  # seconds; the rate is what the machine had to spare just then
        assert one["matrix_share"] == pytest.approx(ideal / one["seconds_per_round"]) and one["matrix_share"] > 0
    assert 0 < found["largest_loss_difference"] < 1e-5


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_idle_clients_return_what_they_are_sent(tmp_path):
    """By hand and in raylora: the same losses, no step, no share of a matrix rate; stacked or not there is nothing to tell apart."""
    prepare.write(tmp_path / "idle", "idle", 4, 3, 2)
    folder = Folder(tmp_path / "idle")
    model = Model(folder)
    total, losses, steps = bare.share(model, folder, start := torch.randn(len(model.flat)), 0, range(4))
    assert torch.equal(total, 4 * start.double()) and steps == 0
    with_raylora.idle(folder, Report(tmp_path / "report.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [line["losses"] for line in lines] == 3 * [losses] and all(line["steps"] == 0 and line["cpu"] is None for line in lines)
    found = measure.described([replace(run([[1.0]]), cpu=None)], None, ideal=folder.work.flops())
    assert found["matrix_share"] is None and found["cpu_seconds_per_round"] is None
    assert measure.commands("raylora_unstacked", folder.work, 8, 2) == {}
    one = {"seconds_per_round": 0.026, "seconds_to_first_round": 4.0, "peak_pss_mb": 900.0, "steps": 0, "matrix_share": None}
    several = [{**result("idle", 8), "systems": {"raylora": one}}]
    assert plot.table(several).rows[0][:2] == ("idle, 8", "0.026") and "| raylora | 0.026 | n/a | n/a |" in plot.in_words(several[0])
    assert "1.5 MB, at once" in plot.note(several)


def run(losses, steps=8):
    return measure.Run(ends=(2.0, 3.0, 5.0), cpu=(3.0, 4.0, 5.0), losses=np.array(losses, float), steps=steps, peak_pss_mb=None)


def test_every_way_of_running_raylora_is_a_configuration():
    for system in ("raylora", "raylora_unstacked"):
        for name, work in WORKLOADS.items():
            for words in measure.commands(system, work, 64, 2).values():
                overrides = tuple(word for word in words(Path("folder"), Path("report")) if "=" in word)
                read = config(Path("folder"), name, 2, overrides).training
                assert (read.cache, read.stack) == ("off", 1) or system == "raylora"


def test_no_figures_for_other_work():
    ours = run([[1.0, 1.1], [0.9, 0.8]])
    close = run([[1.0, 1.1], [0.9, 0.8 + 0.5 * measure.TOLERANCE]])
    assert measure.compare({"a": ours, "b": close}) == pytest.approx(0.5 * measure.TOLERANCE)
    for other, message in (
        (run([[1.0, 1.1], [0.9, 0.8 + 2 * measure.TOLERANCE]]), "round 1, client 1: the loss is 0.8002"),
        (run([[1.0, np.nan], [0.9, 0.8]]), "round 0, client 1"),
        (run([[1.0, 1.1]]), "1 rounds"),
        (replace(ours, steps=7), "7 steps"),
    ):
        with pytest.raises(measure.Differ, match=message):
            measure.compare({"a": ours, "b": close, "c": other})


def test_medians_are_of_all_rounds_after_the_first():
    several = [run([[1.0]]), replace(run([[1.0]]), ends=(4.0, 7.0, 11.0))]  # gaps 1, 2 and 3, 4
    found = measure.described(several, None, ideal=1.0)
    assert found["seconds_per_round"] == 2.5 and found["seconds_to_first_round"] == 3.0 and found["seconds_in_all"] == 8.0
    assert found["matrix_share"] == pytest.approx(1 / 2.5) and found["spread"] == [1.0, 4.0] and found["peak_pss_mb"] is None


@pytest.mark.parametrize("name", ["W1", "W3"])
def test_arithmetic_is_what_torch_counts(name):
    """torch's counter knows the products but not this attention kernel, and counts LoRA's and the head's small ones."""
    work = WORKLOADS[name]
    network = ViT(work)
    with FlopCounterMode(display=False) as counter:
        network.loss(torch.zeros(1, 2, *work.image), torch.zeros(1, dtype=torch.int64)).backward()
    n, w = work.tokens, work.width
    attention = 4 * n * n * w * (work.depth + 2 * work.adapted)
    lora = work.adapted * 6 * n * work.rank * ((w + 3 * w) + (w + w))  # forward, and both gradients
    assert counter.get_total_flops() == pytest.approx(work.flops() - attention + lora, rel=2e-3)


def test_trained_values_are_those_of_the_workloads():
    for name, expected in (("idle", 375_173), ("W0", 375_173), ("W1", 28_613), ("W1s", 28_613), ("W2", 112_517)):
        work = WORKLOADS[name]
        assert sum(p.numel() for p in ViT(work).parameters() if p.requires_grad) == expected
        model = config(Path("folder"), name, 1).model
        assert {n.replace(".base.", ".") for n, _ in ViT(work).named_parameters() if "lora_" not in n} == set(
            dict(zoo.build("vit", "disease", work.size, work.image, model.sizes).named_parameters())
        )


def test_the_mean_is_summed_in_double_precision():
    sent = [torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8])]
    assert mean(sent).item() == pytest.approx(1 / 3)


def test_a_system_that_is_not_built_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(build, "complete", lambda peer: False)
    assert "make peers" in measure.absent("flower") and measure.absent("bare") is None


def result(workload, clients, **systems):
    one = {"seconds_to_first_round": 8.0, "peak_pss_mb": 900.0, "steps": 10, "matrix_share": 0.5}
    return {
        "workload": workload,
        "clients": clients,
        "rounds": 2,
        "repeats": 3,
        "workers": 2,
        "systems": {name: {**one, "seconds_per_round": seconds} for name, seconds in systems.items()},
        "skipped": {"pfl": "it is not built"},
        "largest_loss_difference": 1e-6,
        "tolerance": 1e-4,
        "machine": {"processor": "a processor", "torch": "2", "flwr": "1", "pfl": "0.6", "ray": "2"},
    }


def test_table_and_picture_come_from_the_results(tmp_path):
    several = [result("W1", 64, raylora=2.0, raylora_unstacked=4.0, bare=3.0, flower=5.0), result("W2", 8, raylora=10.0, bare=9.5)]
    for found in several:
        (tmp_path / f"{found['workload']}.json").write_text(json.dumps(found))
    plot.write(tmp_path, public=False)
    rows = [line.split(" | ") for line in (tmp_path / "peers.md").read_text().splitlines() if line.startswith(("| W1", "| W2"))]
    assert rows[0][1:] == ["2.00 (50 %)", "3.00 (50 %)", "n/a", "5.00 (50 %)", "1.50", "0.75", "n/a", "2.50", "1.00", "1.00 |"]
    assert rows[1][5] == "0.95" and rows[1][-1] == "n/a |"
    assert (tmp_path / "peers.png").stat().st_size > 10_000
    said = plot.in_words(several[0])
    assert "| bare loop | 3.00 | 1.50 | 50 % |" in said and "pfl: not measured, it is not built" in said
    assert " a processor, 2 cores" in plot.note(several)
    several[0]["machine"] = {**several[0]["machine"], "processor": "another"}
    assert " a processor (W1 with 64 clients: another), 2 cores" in plot.note([*several, several[1]])


def test_memory_is_watched_for_every_number_of_clients_and_laid_beside_the_smallest(monkeypatch):
    asked = []

    def once(command, folder, *, memory):
        clients = Folder(folder).clients
        asked.append((clients, Folder(folder).rounds, " ".join(command(folder, folder / "report"))))
        return replace(run(np.ones((2, clients))), peak_pss_mb=1000.0 + clients + len(asked))

    monkeypatch.setattr(measure, "once", once)
    monkeypatch.setattr(memory, "WORKLOAD", "W0")
    found = memory.watch((2, 4), ("raylora", "flower"), 3, 1, lambda text: None)
    assert [clients for clients, *_ in asked] == 3 * [2, 2, 4, 4] and {rounds for _, rounds, _ in asked} == {2}
    assert ["with_raylora" in words for *_, words in asked[:8]] == [True, False, True, False, False, True, False, True]
    assert (
        found["peak_pss_mb"]["raylora"]
        == {"2": 1008.0, "4": 1012.0}
        == {n: sorted(several)[1] for n, several in found["runs"]["raylora"].items()}
    )
    assert found["update_mb"] == pytest.approx(4 * 375_173 / 2**20)
    (name, few, many, ratio, without), _ = memory.table(found).rows
    assert (name, few, many) == ("raylora", 1008.0, 1012.0) and ratio == 1012 / 1008
    assert without == pytest.approx((1012 - 2 * 4 * 375_173 / 2**20) / 1008)


def test_a_mark_is_reached_from_its_own_side():
    several = [result("W1", 64, raylora=2.0, raylora_unstacked=4.0, bare=3.0, flower=5.0), result("W1", 8, raylora=1.0)]
    speed, memory = (marks.Mark("W1", 64, key, "bare", 1.5) for key in ("seconds_per_round", "peak_pss_mb"))
    assert speed.measured(several) == 1.5 and speed.reached(1.5) and not speed.reached(1.49)
    assert memory.measured(several) == 1.0 and memory.reached(1.5) and not memory.reached(1.51)
    assert marks.Mark("W1", 64, "seconds_per_round", "bare", 0.9, ours=marks.ALONE).measured(several) == 0.75
    assert marks.Mark("W1", 64, "seconds_in_all", "bare", 1.0).measured(several) is None
    rows = marks.table(several).rows
    assert (rows[0], rows[2]) == (
        ("W1, 64", "rounds a second", "bare loop", "at least 1.35", 1.5, "yes"),
        ("W1, 64", "rounds a second, one client at a time", "bare loop", "at least 0.90", 0.75, "no"),
    )


@pytest.mark.slow
def test_a_profile_accounts_for_all_of_a_round(tmp_path):
    named = {
        "aten::addmm": "products",
        "aten::bmm": "products",
        "aten::native_layer_norm": "normalisation",
        "aten::gelu_backward": "activation",
    }
    named |= {"aten::_scaled_dot_product_flash_attention_for_cpu": "attention", "aten::copy_": "moving", "aten::add": "element-wise"}
    assert {operator: profile.group(operator) for operator in named} == named
    prepare.write(tmp_path / "all", "W0", 2, profile.ROUNDS + 1, 1)
    found = profile.look("W0", 2, ("training.stack=2",), tmp_path / "all")
    assert found["ms_a_step"] == pytest.approx(sum(found[name] for name in profile.ORDER))
    assert found["products"] > 0 and found["attention"] > 0 and found["between"] > 0
