"""How many clients share a pass: the arithmetic of the choice, and what is measured for it."""

import math

import pytest
import torch
from small_runs import run, tiny

from raylora import config as configuration
from raylora import planning
from raylora.core.types import Broadcast, Phase, Task
from raylora.federation import host, memory
from raylora.federation.build import build_host
from raylora.federation.rounds import stacked
from raylora.federation.stacking import Probe, candidates, choose, in_words, measure, most_per_pass

MB = 1_000_000


def machine(seconds=lambda k: 1.0, bytes=lambda k: 100 * MB + 10 * MB * k, before=100 * MB):
    asked = []

    def probe(k: int) -> Probe:
        asked.append(k)
        return Probe(clients=k, seconds=seconds(k), bytes=bytes(k), before=before)

    return probe, asked


def test_every_actor_has_a_stack():
    assert [most_per_pass(*pair) for pair in ((64, 2), (5, 2), (3, 8), (1, 1))] == [32, 3, 1, 1]
    assert candidates(1) == [1] and candidates(8) == [1, 2, 4, 8] and candidates(11) == [1, 2, 4, 8, 11]


def test_it_is_measured_as_long_as_it_gets_better():
    probe, asked = machine(lambda k: {1: 1.0, 2: 0.6, 4: 0.5}.get(k, 0.495))
    assert [p.clients for p in measure(probe, 32, 1e12)] == asked == [1, 2, 4, 8], "8 is hardly faster than 4"
    probe, asked = machine()
    measure(probe, 32, 1e12)
    assert asked == [1, 2], "nothing is gained"
    probe, asked = machine(lambda k: 1 / k)
    measure(probe, 6, 1e12)
    assert asked == [1, 2, 4, 6]


def test_it_stops_before_the_memory_is_full():
    probe, asked = machine(lambda k: 1 / k)  # 110 MB, then 10 MB a client
    measure(probe, 64, 180 * MB)
    assert asked == [1, 2, 4, 8], "16 would take 260 MB, by the growth so far"
    probe, asked = machine(lambda k: 1 / k, lambda k: 100 * MB * k, before=0)
    found = measure(probe, 64, 150 * MB)
    assert asked == [1] and choose(found, 64, 1, 150 * MB) == 1, "of two clients what one added says enough"
    asked.clear()
    assert choose(measure(probe, 64, 50 * MB), 64, 1, 50 * MB) == 1 and asked == [1], "one client has to fit, whatever was measured"
    probe, asked = machine(lambda k: 1 / k, lambda k: 90 * MB if k == 1 else math.inf, before=80 * MB)
    found = measure(probe, 64, 150 * MB)
    assert asked == [1, 2] and choose(found, 64, 1, 150 * MB) == 1 and in_words(found, 1).endswith("2: no room)")


def test_a_pass_for_which_there_is_no_memory_is_no_error(prepared_folder, monkeypatch):
    plan = planning.make_plan(tiny(prepared_folder, "disease"))
    host_ = build_host(plan.spec, plan.weights)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(host, "train", full)
    assert host_.probe(2).bytes == math.inf


def test_what_is_timed_holds_no_filling_of_the_feature_cache(prepared_folder, tmp_path, monkeypatch):
    plan = planning.make_plan(tiny(prepared_folder, "disease", lora__blocks=1, training={"batch_size": 2}, data__cache=str(tmp_path)))
    assert plan.spec.cache is not None
    built = build_host(plan.spec, plan.weights)
    computed, real = [], host.train

    def counted(*args, **kwargs):
        result = real(*args, **kwargs)
        computed.append(built.model.prefix.computed)
        return result

    monkeypatch.setattr(host, "train", counted)
    for stack in (1, 2):
        built.probe(stack)
    assert computed[0] > 0 and computed[1] == computed[0] and computed[2] > computed[1] and computed[3] == computed[2]


def probes(**seconds):
    return [Probe(clients=int(k[1:]), seconds=s, bytes=1) for k, s in seconds.items()]


@pytest.mark.parametrize(
    ("clients", "actors", "found", "chosen"),
    [
        (8, 1, probes(k1=1.0, k2=0.6, k4=0.5), 4),
        (8, 2, probes(k1=1.0, k2=0.6, k4=0.5), 4),
        (8, 1, probes(k1=1.0, k2=1.0), 1),  # the smaller of two equals
        (5, 2, probes(k1=1.0, k2=0.7), 2),  # 3 rounds of one client: 3.0 s; 2 of two: 2.8 s
        (4, 4, probes(k1=1.0), 1),
        (6, 2, probes(k1=1.0, k2=0.8, k3=0.75), 3),  # 3.0, 3.2, 2.25
    ],
)
def test_the_shortest_round_is_chosen(clients, actors, found, chosen):
    assert choose(found, clients, actors, 1e9) == chosen


def test_what_was_measured_is_said():
    found = [Probe(clients=1, seconds=0.0123, bytes=250 * MB), Probe(clients=2, seconds=0.008, bytes=260 * MB)]
    assert (
        in_words(found, 2)
        == "training.stack: auto is 2 here (clients in a pass: 1: 12.3 ms a client's step, 250 MB, 2: 8.0 ms a client's step, 260 MB)"
    )


def test_a_probe_trains_and_leaves_nothing_behind(prepared_folder):
    plan = planning.make_plan(tiny(prepared_folder, "disease"))
    host = build_host(plan.spec, plan.weights)
    found = [host.probe(k) for k in (1, 3)]
    assert [p.clients for p in found] == [1, 3] and all(0 < p.seconds < 30 and p.bytes > 50 * MB for p in found)
    assert not host.states and not host.after
    assert all((weight.numpy() == plan.weights[name]).all() for name, weight in host.model.weights.items())


def test_memory_s_high_water_mark_is_of_the_stretch():
    with memory.Peak("cpu") as before:
        pass
    with memory.Peak("cpu") as peak:
        block = bytearray(200 * MB)
        block[::4096] = b"x" * len(block[::4096])
        del block
    assert peak.bytes >= before.bytes + 150 * MB
    alone, three = memory.limit("cpu", 1), memory.limit("cpu", 3)
    assert 0 < three < alone


def test_auto_is_resolved_once_and_written_to_the_configuration(prepared_folder, tmp_path, monkeypatch):
    fast = {1: 1.0, 2: 0.5, 4: 0.4}
    monkeypatch.setattr("raylora.federation.host.Host.probe", lambda self, k: Probe(clients=k, seconds=fast[k], bytes=1))
    found = run(tiny(prepared_folder, "disease", training__stack="auto"), tmp_path / "auto")
    written = configuration.load(tmp_path / "auto" / "config.yaml")
    assert written.training.stack == found.summary["numerics"]["stack"] == 4
    assert found.summary["config_sha256"] == written.sha256()
    monkeypatch.setattr("raylora.federation.host.Host.probe", None)
    again = run(written, tmp_path / "again")
    assert again.hashes == found.hashes, "with the number written down nothing is measured, and nothing else changes"


def test_auto_is_measured_for_the_clients_of_a_round(prepared_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("raylora.federation.host.Host.probe", lambda self, k: asked.append(k) or Probe(clients=k, seconds=1 / k, bytes=1))
    two = {"kind": "uniform", "fraction": 0.5}
    found = run(tiny(prepared_folder, "disease", training__stack="auto", sampling=two), tmp_path / "run")
    assert asked == [1, 2] and found.summary["numerics"]["stack"] == 2, "of four clients two come to a round"


def test_those_of_a_pass_do_the_same():
    """A strategy may ask each client for something else; what a pass computes is one thing."""

    def asked(mu, scores=()):
        return Broadcast(adapter={}, task=Task(round=1, phases=(Phase(trains=("*",), terms={"prox": mu}),), scores=scores))

    order = [
        ("a", asked(0.0)),
        ("b", asked(0.0)),
        ("c", asked(0.0)),
        ("d", asked(1.0)),
        ("e", asked(1.0, ("received",))),
        ("f", asked(0.0)),
    ]
    cut = [[client for client, _ in one] for one in stacked(order, 2)]
    assert cut == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    assert [[client for client, _ in one] for one in stacked(order[:3], 8)] == [["a", "b", "c"]] and stacked([], 2) == []
