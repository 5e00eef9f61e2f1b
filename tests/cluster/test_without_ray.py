"""What an executor and a trial's driver decide by themselves, with a stand-in for Ray."""

import math
import socket
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from small_runs import tiny

from raylora import config as configuration
from raylora import planning
from raylora.cluster import client_actor, session, trial
from raylora.cluster.client_actor import RayExecutor
from raylora.cluster.resources import Available, Request
from raylora.cluster.wire import pack
from raylora.core.errors import InputError, RunError
from raylora.core.types import Broadcast, Phase, Task
from raylora.sweep.ledger import Ledger


def executor(**attributes) -> RayExecutor:
    """One that has started nothing."""
    made = object.__new__(RayExecutor)
    made.__dict__.update(attributes)
    return made


@pytest.mark.parametrize(
    ("gpus", "count", "there"), [(0.25, 4, True), (0.2, 5, True), (0.1, 10, True), (0.2, 6, False), (0.0, 10, True), (0.0, 11, False)]
)
def test_room_is_counted_as_it_was_when_the_run_began(monkeypatch, gpus, count, there):
    """1 // 0.2 is 4: rounded down, an actor that had its share of a GPU would be said to have lost it."""
    monkeypatch.setattr(client_actor, "available", lambda: Available(cpus=1.0, gpus=1.0, where="here"))
    one = executor(request=Request(groups=(), cpus=0.1, gpus=gpus), cpus=[0.1] * count)
    assert one._room() is there


def test_a_state_that_was_put_right_goes_with_the_next_call():
    """The actor that trained the client holds another one."""
    one = executor(states={"a": "moved", "b": "moved"}, at={"a": 0, "b": 1})
    one.restore({"a": "as before"})
    assert (one.states, one.at) == ({"a": "as before", "b": "moved"}, {"b": 1})


def test_an_error_names_the_client_that_had_it_and_no_other_of_its_call():
    def train(clients, broadcasts):
        if clients == ["b"]:
            raise ValueError("no such thing")
        return []

    actor = client_actor.ClientActor()
    actor.host = SimpleNamespace(train=train, restore=lambda states: None)
    broadcast = Broadcast(adapter={}, task=Task(round=2, phases=(), uploads=()))
    with pytest.raises(RunError, match=r"^round 3, client b: ValueError: no such thing$"):
        actor.train(pack(([[("a", broadcast)], [("b", broadcast)], [("c", broadcast)]], {})), pack([]))


def test_what_nobody_knows_to_be_a_short_training_is_asked_for_alone():
    one, training = executor(seconds={"a": 0.1, "b": 0.15}), (Phase(trains=("*",)),)

    def part(clients, phases=training, size=100):
        broadcast = Broadcast(adapter={"w": np.zeros(size, np.float32)}, task=Task(round=2, phases=phases, uploads=()))
        return one._part([(client, broadcast) for client in clients])

    assert part("ab") == pytest.approx(0.5), "the seconds of its clients, of half a second"
    assert part("a", size=1_000_000) == pytest.approx(0.5), "4 MB of 8: more of it than its seconds"
    one.seconds["a"] = 0.0
    assert part("a") == 1 / 16
    assert part("ac") == math.inf, "c has not trained yet"
    assert part("a", phases=()) == math.inf, "a review is as long as there are models to look at"


@pytest.mark.parametrize("restarts", [0, 1])
def test_an_actor_in_the_place_of_another_has_the_studies_of_all_clients(prepared_folder, monkeypatch, restarts):
    """The one that was lost may have been asked for clients that are not at home in it; on a machine without the data they come with it."""
    spec = planning.make_plan(tiny(prepared_folder)).spec
    sent = []
    actor = SimpleNamespace(open=SimpleNamespace(remote=lambda spec, *_: sent.append({site.id for site in spec.sites})))
    monkeypatch.setattr(ray, "put", lambda value: value)
    everybody = sorted(site.id for site in spec.sites)
    request = Request(groups=(tuple(everybody[:2]), tuple(everybody[2:])), cpus=1.0, gpus=0.0)
    one = executor(spec=spec, request=request, weights={}, whole=[True, True], restarts=[0, restarts], actors=[None, actor])
    one._send(1)
    assert sent == [set(everybody if restarts else everybody[2:])] and one.whole == [True, bool(restarts)]


def test_a_trial_that_goes_on_keeps_the_stack_that_was_chosen_when_it_began(prepared_folder, tmp_path, monkeypatch):
    """`auto` depends on what the machine does meanwhile: chosen again, the rounds that are left could have other last bits."""
    monkeypatch.setattr(ray, "get", lambda reference: {})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    plan = planning.make_plan(tiny(prepared_folder, training__stack="auto"))
    options = {"weights": {}, "metric": "dice", "until": None, "request": None, "node": "here", "ledger": ""}
    place = trial.Place(number=0, plan=plan, folder=str(tmp_path / "trial"), **options)
    assert trial._running(place, [None]).plan.config.training.stack == "auto"
    written = tmp_path / "trial" / "config.yaml"
    begun = configuration.load(written)
    assert begun == plan.config
    chosen = begun.model_copy(update={"training": begun.training.model_copy(update={"stack": 3})})
    written.write_text(configuration.dump(chosen))
    again = trial._running(replace(place), [None]).plan.config
    assert again == chosen and configuration.load(written) == chosen


@pytest.mark.parametrize("pruned", [False, True])
def test_a_trial_whose_time_is_up_leaves_no_summary_of_a_pruned_one(tmp_path, pruned):
    """Tune stops both in one way; the first goes on another day, and must not look ended until then."""
    did = []
    ledger = Ledger(tmp_path, "a")
    if pruned:
        ledger.append({"kind": "pruned", "number": 5, "round": 2})
    driver = object.__new__(trial.DriverActor)
    driver.number, driver.ledger = 5, ledger.path
    driver.trial = SimpleNamespace(prune=lambda: did.append("pruned"), close=lambda: did.append("closed"))
    driver._end()
    assert did == (["pruned", "closed"] if pruned else ["closed"])
    ledger.close()


def test_a_ray_that_wants_a_token_gives_no_hint_of_it_and_so_the_refusal_does(monkeypatch):
    def init(**options):
        raise ConnectionError("Failed to connect to Ray cluster")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        hint = r"^--address \S+: Ray does not answer: Failed .*; .*: export RAY_AUTH_MODE=token"
        with pytest.raises(InputError, match=hint), session.opened(address):
            pass
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(InputError, match="cluster$"), session.opened(address):
            pass


@pytest.mark.parametrize("sent", [True, False])
def test_features_lie_where_the_studies_are(prepared_folder, tmp_path, monkeypatch, sent):
    """A machine that has its studies sent keeps them in a cache of its own: the command's folder may not be one that it can make."""
    config = tiny(prepared_folder, "disease", lora__blocks=1, training__cache="fp32", data__cache=str(tmp_path / "command"))
    plan = planning.make_plan(config)
    monkeypatch.setenv("RAYLORA_CACHE", str(tmp_path / "node"))
    monkeypatch.setattr(client_actor.travel, "unpack", lambda parcel, folder, get: prepared_folder)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    actor = client_actor.ClientActor()
    actor.open(plan.spec, plan.weights, 0.0, [()] if sent else None)
    assert actor.host.model.prefix.spec.folder == str(tmp_path / ("node" if sent else "command") / "features")
