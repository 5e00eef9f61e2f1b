"""What a client sends: exactly what was asked for, or it is in no sum."""

import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from small_runs import run, tiny

from raylora.core import lowrank
from raylora.core.errors import RunError
from raylora.core.types import Broadcast, Client, ClientState, ClientUpdate, Phase, State, Strategy, Task
from raylora.federation.answers import Outcome
from raylora.federation.border import Checked, refusal
from raylora.federation.build import build_host
from raylora.federation.executor import InProcess
from raylora.federation.rounds import Progress, run_round
from raylora.strategies import STRATEGIES, toy

MODEL = {"a.lora_A": np.zeros((2, 4)), "a.lora_B": np.zeros((3, 2)), "head.bias": np.zeros(3), "local.a.lora_A": np.zeros((2, 4))}
CLIENT = Client(id="GE", num_examples=7, rank=2, scaling=1.5)
TASK = Task(round=4, phases=(Phase(trains=("*",), terms={"control": 1.0}),), uploads=("*", "!local.*"), scores=("received",))


def like(names, seed=0):
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=MODEL[name].shape).astype(np.float32) for name in names}


SENT = ("a.lora_A", "a.lora_B", "head.bias")
GOOD = ClientUpdate(
    client_id="GE",
    num_examples=7,
    adapter=like(SENT),
    metrics={"loss": 1.0, "score_received": 0.5},
    extra={"delta_c": like(MODEL)},
    scaling=1.5,
)
BROADCAST = Broadcast(adapter=like(("a.lora_A", "a.lora_B")), task=TASK)


def why(update=GOOD, broadcast=BROADCAST, **change):
    return refusal(replace(update, **change) if change else update, broadcast, CLIENT, MODEL)


def test_what_was_asked_for_passes():
    assert why() is None and why(adapter_bytes=12) is None and why(metrics={"score_received": 0.5}) is None
    pruned = {name: value[:1] if name.endswith("A") else value[:, :1] for name, value in BROADCAST.adapter.items()}
    smaller = {**GOOD.adapter, **pruned}  # a strategy may send less than the client's rank; the scaling follows
    controls = {"delta_c": {**GOOD.extra["delta_c"], **pruned}}
    assert why(broadcast=replace(BROADCAST, adapter=pruned), adapter=smaller, scaling=3.0, extra=controls) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"adapter": {**GOOD.adapter, "a.lora_A": GOOD.adapter["a.lora_A"].astype(np.float64)}}, "a.lora_A is float64, expected float32"),
        ({"adapter": {**GOOD.adapter, "a.lora_A": GOOD.adapter["a.lora_A"].tolist()}}, "a.lora_A is list, expected float32"),
        ({"adapter": {**GOOD.adapter, "a.lora_A": np.full((2, 4), np.inf, np.float32)}}, "a.lora_A has values that are not finite"),
        ({"adapter": {**GOOD.adapter, "a.lora_A": np.zeros((3, 4), np.float32)}}, "a.lora_A has shape (3, 4), expected (2, 4)"),
        ({"adapter": {**GOOD.adapter, "local.a.lora_A": MODEL["local.a.lora_A"]}}, "1 were not asked for (['local.a.lora_A'])"),
        ({"adapter": {"a.lora_A": GOOD.adapter["a.lora_A"]}}, "2 names are missing (['a.lora_B'])"),
        ({"adapter": None}, "sent NoneType for named arrays"),
        ({"extra": {"c": {}}}, "sent the extra trees ['c'], expected ['delta_c']"),
        ({"extra": {}}, "sent the extra trees [], expected ['delta_c']"),
        ({"metrics": {}}, "the score 'received' is missing"),
        ({"extra": {"delta_c": like(SENT)}}, "1 names are missing (['local.a.lora_A'])"),
        ({"num_examples": 10**9}, "says 1000000000 patients, expected 7"),
        ({"scaling": math.nan}, "says a scaling of nan, expected 1.5"),
        ({"adapter_bytes": -1}, "says -1 bytes"),
        ({"metrics": {"loss": math.inf}}, "the metric 'loss' is inf"),
        ({"metrics": {"loss": "0.1"}}, "the metric 'loss' is '0.1'"),
        ({"metrics": {str(i): 0.0 for i in range(100)}}, "something else than a few metrics"),
    ],
)
def test_everything_else_is_refused_with_the_reason(change, said):
    assert said in (why(**change) or "")


def test_what_is_no_update_at_all():
    for thing in (None, {}, GOOD.adapter, "update"):
        assert refusal(thing, BROADCAST, CLIENT, MODEL) == f"sent {type(thing).__name__}, expected an update"


def test_scores_of_others_are_missed_where_they_were_shown():
    asked = replace(BROADCAST, task=replace(TASK, scores=("peer:Canon",)))
    assert why(broadcast=asked, metrics={}) is None
    assert why(broadcast=replace(asked, extra={"peer:Canon": {}}), metrics={}) == "the score 'peer:Canon' is missing"


# ---- a thousand of them


def malformed(good: ClientUpdate, draw: np.random.Generator) -> ClientUpdate:
    """One thing about the update is wrong; which, and how, is drawn."""
    names = sorted(good.adapter)
    name = names[draw.integers(len(names))]
    value = np.array(good.adapter[name])
    at = tuple(draw.integers(n) for n in value.shape)
    bad = [np.nan, np.inf, -np.inf][draw.integers(3)]
    poisoned = value.copy()
    poisoned[at] = bad

    class Disguised(np.ndarray):
        """An array whose sums are what it wants them to be."""

    class Poison:
        def __array__(self, *_, **__):
            return value

    def tree(array: object) -> dict:
        return {**good.adapter, name: array}

    kinds = [
        lambda: {"adapter": tree(poisoned)},
        lambda: {"adapter": tree(value.astype(draw.choice(["f8", "f2", "i4", "c8", ">f4", "O", "S8", "?"])))},
        lambda: {"adapter": tree(np.zeros(tuple(int(n) for n in draw.integers(0, 9, size=draw.integers(0, 5))) + (1,) * 6, np.float32))},
        lambda: {"adapter": tree(value[None] if draw.random() < 0.5 else value.ravel()[:-1])},
        lambda: {"adapter": tree([value.tolist(), None, 0.0, "x", Poison(), value.view(Disguised)][draw.integers(6)])},
        lambda: {"adapter": {n: v for n, v in good.adapter.items() if n != name}},
        lambda: {"adapter": {**good.adapter, ["", "../x", name + " ", name.upper(), "a" * 9999, 7][draw.integers(6)]: value}},
        lambda: {"adapter": [{}, None, names, value][draw.integers(4)]},
        lambda: {"extra": [{"c": good.adapter}, {"delta_c": {name: poisoned}}, None, {"delta_c": None}, {0: {}}][draw.integers(5)]},
        lambda: {"metrics": {"loss": [bad, "1", None, value, True, 1j][draw.integers(6)]}},
        lambda: {"metrics": [None, {7: 0.1}, {str(i): 0.1 for i in range(1000)}, [0.1]][draw.integers(4)]},
        lambda: {"num_examples": [0, -1, 2**70, None, bad, "7", good.num_examples + 0.5, True][draw.integers(8)]},
        lambda: {"scaling": [0.0, -1.0, bad, None, "1", 1e30, good.scaling * 1.01][draw.integers(7)]},
        lambda: {"adapter_bytes": [-1, 1.5, bad, "1"][draw.integers(4)]},
    ]
    return replace(good, **kinds[draw.integers(len(kinds))]())


@cache
def federation() -> tuple[Strategy, tuple[Client, ...], dict]:
    clients = tuple(Client(id=name, num_examples=count, rank=2, scaling=2.0) for name, count in (("GE", 5), ("Siemens", 9), ("Canon", 3)))
    strategy = STRATEGIES["fedit"]()
    return strategy, clients, dict(toy.initial_tree(strategy, 2))


class Liars:
    """Clients that answer with what they were sent, and one that answers with something else."""

    def __init__(self, liar: str, draw: np.random.Generator) -> None:
        self.liar, self.draw = liar, draw

    def train(self, stacks):
        clients = federation()[1]
        for stack in stacks:
            for name, broadcast in stack:
                (client,) = [c for c in clients if c.id == name]
                moved = {n: (v + 1).astype(np.float32) for n, v in broadcast.adapter.items()}
                update = ClientUpdate(
                    client_id=name, num_examples=client.num_examples, adapter=moved, metrics={"loss": 1.0}, scaling=client.scaling
                )
                yield Outcome(
                    update=malformed(update, self.draw) if name == self.liar else update,
                    state=ClientState(round=broadcast.task.round),
                    seconds=0.0,
                )


def play(malformed: str, liar: str, draw: np.random.Generator):
    """One round; what reached the sum, and the outcome of the round."""
    strategy, clients, tree = federation()
    summed: list[ClientUpdate] = []

    def aggregate(state: State, updates) -> State:
        summed.extend(updates)
        return strategy.aggregate(state, updates)

    watched = replace(strategy, aggregate=aggregate)
    server = strategy.init(tree)
    broadcasts = {client.id: strategy.broadcast(server, client) for client in clients}
    executor = Checked(Liars(liar, draw), clients, {client.id: tree for client in clients}, malformed)
    try:
        return summed, run_round(Progress(round=0, server=server), broadcasts, watched, clients, [c.id for c in clients], executor)
    except RunError as error:
        return summed, error


def test_of_a_thousand_malformed_updates_none_reaches_a_sum():
    draw = np.random.default_rng(7)
    names = ["GE", "Siemens", "Canon"]
    honest, _ = play("exclude", "nobody", draw)
    assert len(honest) == 3
    reasons = set()
    for number in range(1000):
        liar = names[number % 3]
        if number % 2:
            summed, ended = play("stop", liar, draw)
            assert isinstance(ended, RunError) and str(ended).startswith(f"round 1, client {liar}: ") and not summed, number
            continue
        summed, (after, report) = play("exclude", liar, draw)
        assert [update.client_id for update in summed] == sorted({*names} - {liar}), number
        assert list(report.refused) == [liar] and "\n" not in report.refused[liar] and len(report.refused[liar]) < 200
        assert all(np.isfinite(value).all() for tree in after.server.trees.values() for value in tree.values())
        assert liar in after.states, "what it keeps has moved, as it says"
        reasons.add(" ".join(report.refused[liar].split()[:2]))
    assert len(reasons) > 8, reasons


def test_a_name_that_was_not_asked_or_has_answered_ends_the_run():
    strategy, clients, tree = federation()
    broadcast = strategy.broadcast(strategy.init(tree), clients[0])

    class Impostor:
        def train(self, stacks):
            for name in self.names:
                update = ClientUpdate(client_id=name, num_examples=5, adapter={n: tree[n] for n in broadcast.adapter}, scaling=2.0)
                yield Outcome(update=update, state=ClientState(), seconds=0.0)

    impostor = Impostor()
    checked = Checked(impostor, clients, {client.id: tree for client in clients}, "exclude")
    for impostor.names in (["Canon"], ["GE", "GE"], [None], ["../GE"]):
        with pytest.raises(RunError, match="who was not asked or has answered already"):
            list(checked.train([[("GE", broadcast)]]))


# ---- in a run


class Lying(InProcess):
    """One client's uploads are not numbers from the second round on."""

    def train(self, stacks):
        for outcome in super().train(stacks):
            update = outcome.update
            if update.client_id == "GE" and stacks[0][0][1].task.round >= 1:
                update = replace(update, adapter={n: np.full_like(v, np.nan) for n, v in update.adapter.items()})
            yield replace(outcome, update=update)


def lying(plan):
    return Lying(build_host(plan.spec, plan.weights))


def test_a_run_leaves_the_client_out_and_says_so_or_ends(prepared_folder, tmp_path):
    options = {"training__rounds": 3, "strategy": {"name": "med_duallora", "head": "private"}}
    with pytest.raises(RunError, match=r"^round 2, client GE: \S+ has values that are not finite$"):
        run(tiny(prepared_folder, "disease", **options), tmp_path / "stop", executor=lying)
    found = run(tiny(prepared_folder, "disease", **options, faults={"malformed": "exclude"}), tmp_path / "exclude", executor=lying)
    refused = [line.get("refused") for line in found.lines if line["kind"] == "round"]
    assert refused[0] is None and [list(r) for r in refused[1:]] == [["GE"]] * 2
    assert all(np.isfinite(value["mean"]) for value in found.summary["final"].values() if value["mean"] is not None)


class Garbling(InProcess):
    """What one client says of what it was shown is no number."""

    def train(self, stacks):
        for outcome in super().train(stacks):
            update = outcome.update
            if update.client_id == "GE" and not stacks[0][0][1].task.phases:
                update = replace(update, metrics=dict.fromkeys(update.metrics, math.nan))
            yield replace(outcome, update=update)


def test_a_second_answer_that_is_not_what_was_asked_for_is_left_out_with_a_word(prepared_folder, tmp_path):
    config = tiny(prepared_folder, "disease", strategy={"name": "rate_my_lora", "rule": "peer"}, faults={"malformed": "exclude"})
    found = run(config, tmp_path / "run", executor=lambda plan: Garbling(build_host(plan.spec, plan.weights)))
    for line in found.lines:
        if line["kind"] == "round":
            assert re.fullmatch(r"of what it was shown: the metric 'score_peer:\w+' is nan", line["refused"].pop("GE"))
            assert not line["refused"] and line["weights"].keys() == {"Canon", "Philips", "Siemens"}


def test_every_strategy_s_own_updates_pass(runs):
    """Nothing that is asked for is refused: pruned ranks, control variates, scores of peers, compressed movements, a part of the names."""
    asked = {
        "hetlora": {"strategy": {"name": "hetlora", "gamma": 0.5, "lam": 0.3}, "lora__rank": 4, "training__optimiser": "sgd"},
        "scaffold": {"strategy": {"name": "scaffold"}, "training__optimiser": "sgd"},
        "peers": {"strategy": {"name": "rate_my_lora", "rule": "peer"}},
        "top-k": {"compress": {"kind": "top_k", "share": 0.1}},
        "rolora": {"strategy": {"name": "rolora"}},
    }
    for name, options in asked.items():
        found = runs("disease", faults={"malformed": "exclude"}, training__rounds=4, **options)
        assert not any("refused" in line for line in found.lines), name
        answered = [line for line in found.lines if line["kind"] == "client"]
        assert len(answered) == 16, name
    pruned = runs("disease", faults={"malformed": "exclude"}, training__rounds=4, **asked["hetlora"]).received
    assert {lowrank.rank_of(update.adapter) for update in pruned} == {2, 4}
