"""From names and options to strategies: what is known, what is near, what is refused."""

import ast
from pathlib import Path

import pytest

import raylora.strategies
from raylora.core.errors import InputError
from raylora.core.privacy import dp_mean
from raylora.core.reduce import median
from raylora.core.types import Client
from raylora.strategies import STRATEGIES, create, toy

CONTRACT = (
    "local centralised fedavg_full fedit ffa_lora fedsa_lora flora hetlora flexlora fedex_lora rolora lora_fair feddpa fedalt sdflora "
    "fedprox scaffold fedavgm fedadam fedyogi rate_my_lora med_duallora"
)
FOLDER = Path(raylora.strategies.__file__).parent


def test_the_names_of_the_contract() -> None:
    assert set(STRATEGIES) == set(CONTRACT.split())


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_short_file_each_with_its_source_and_equation(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 80
    module = ast.parse(text)
    factory = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name)
    assert ast.get_docstring(module) and ast.get_docstring(factory)
    assert name in ("local", "centralised") or "arXiv" in (ast.get_docstring(module) or "")
    assert STRATEGIES[name]().name == name


REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("fedti", {}, "strategy.name: unknown strategy fedti, did you mean fedit?"),
    ("zzz", {}, "strategy.name: unknown strategy zzz, expected one of centralised,"),
    ("rate_my_lora", {"temprature": 1.0}, "strategy.temprature: rate_my_lora has no such option, did you mean temperature?"),
    ("flora", {"seed": 5}, "strategy.seed: flora is given this by the run itself, found 5"),
    ("scaffold", {"clients": "x"}, "strategy.clients: scaffold is given this by the run itself, found 'x'"),
    ("fedit", {"seed": 5}, "strategy.seed: fedit has no such option, expected one of head, reduce, weights"),
    ("local", {"mu": 1.0}, "strategy.mu: local has no such option (it is one of fedprox), expected one of none"),
    ("rate_my_lora", {"temperature": 0.0}, "strategy.temperature: expected a number above 0.0, found 0.0"),
    ("rate_my_lora", {"temperature": "hot"}, "strategy.temperature: expected a number above 0.0, found hot"),
    ("rate_my_lora", {"rule": "best"}, "strategy.rule: expected drop or trend or softmax or peer or shuffled, found best"),
    ("rate_my_lora", {"rule": "peer", "head": "private"}, "strategy.rule: peer scores other clients' models, which a private head"),
    ("fedit", {"weights": "loss"}, "strategy.weights: expected size or uniform, found loss"),
    ("fedit", {"head": "frozen"}, "strategy.head: expected shared or private, found frozen"),
    ("fedprox", {"mu": -1}, "strategy.mu: expected a number of at least 0.0, found -1"),
    ("fedprox", {"mu": True}, "strategy.mu: expected a number of at least 0.0, found True"),
    ("fedavgm", {"b1": 1.5}, "strategy.b1: expected a number of at least 0.0 at most 1.0, found 1.5"),
    ("fedadam", {"tau": 0}, "strategy.tau: expected a number above 0.0, found 0"),
    ("med_duallora", {"local_rank": -1}, "strategy.local_rank: expected a whole number of at least 0, found -1"),
    ("med_duallora", {"local_rank": 2.5}, "strategy.local_rank: expected a whole number of at least 0, found 2.5"),
    ("med_duallora", {"stage_rounds": None}, "strategy.stage_rounds: expected a whole number of at least 1, found None"),
    ("feddpa", {"schedule": "F", "stage_rounds": None}, "strategy.stage_rounds: expected a whole number of at least 1, found None"),
    ("lora_fair", {"steps": None}, "strategy.steps: expected a whole number of at least 1, found None"),
    ("rolora", {"period": None}, "strategy.period: expected a whole number of at least 1, found None"),
    ("hetlora", {"rank_min": None}, "strategy.rank_min: expected a whole number of at least 1, found None"),
    ("sdflora", {"local_rank": 0}, "strategy.local_rank: expected a whole number of at least 1, found 0"),
    ("med_duallora", {"local_rank": 0, "global_rank": 0}, "expected one above 0 at least, found 0 and 0"),
    ("med_duallora", {"mode": "both"}, "strategy.mode: expected joint or alternating or staged, found both"),
    ("fedsa_lora", {"share": "C"}, "strategy.share: expected A or B, found C"),
    ("hetlora", {"gamma": 0.0}, "strategy.gamma: expected a number above 0.0 at most 1.0, found 0.0"),
    ("fedit", {"reduce": "medain"}, "strategy.reduce: unknown reduction medain, did you mean median?"),
    ("fedit", {"reduce": "krum"}, "strategy.reduce krum: expected f, found none"),
    ("fedit", {"reduce": {"name": "trimmed_mean", "trim": "x"}}, "strategy.reduce trimmed_mean: expected numbers, found trim 'x'"),
    ("fedit", {"reduce": {"name": "krum", "f": 1.5}}, "reduce multi_krum: expected whole numbers f >= 0 and m >= 1, found f=1.5, m=1"),
    ("fedit", {"reduce": {"name": "trimmed_mean", "trim": 0.7}}, "expected trim in [0, 0.5), found 0.7"),
    ("fedit", {"reduce": {"name": "krum", "f": 1}}, "strategy.reduce: expected at least 5 clients, found 4"),
    ("flora", {"reduce": "median"}, "strategy.reduce: flora adds products, which are never built"),
    ("flexlora", {"reduce": dp_mean(1.0, 1.0)}, "strategy.reduce: flexlora adds products, which are never built"),
    ("fedalt", {"reduce": dp_mean(1.0, 1.0)}, "strategy.reduce: fedalt sends each client another mean"),
    *[
        (name, {"reduce": "median"}, f"strategy.reduce: {name} {why}")
        for name, why in (
            ("local", "aggregates nothing"),
            ("centralised", "has one client"),
            ("rate_my_lora", "rates the clients itself"),
            ("scaffold", "needs the plain mean"),
            ("hetlora", "weighs the clients by the norms"),
            ("fedex_lora", "needs the plain mean"),
            ("lora_fair", "corrects the plain mean"),
        )
    ],
    ("no.such.module:factory", {}, "strategy.name no.such.module:factory: cannot import no.such.module"),
    (":", {}, "strategy.name :: cannot import  (Empty module name)"),
    (".x:y", {}, "strategy.name .x:y: cannot import .x"),
    ("raylora.strategies.fedit:fedti", {}, "raylora.strategies.fedit has no function fedti, did you mean fedit?"),
    ("builtins:print", {}, "expected a factory that returns a Strategy, found NoneType"),
    ("builtins:dict", {}, "expected a function of Python, found <class 'dict'>"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_refused_in_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refused:
        create(name, options, clients=4)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_reduction_of_the_others_needs_one_client_more() -> None:
    krum = {"reduce": {"name": "krum", "f": 1}}
    with pytest.raises(InputError, match="fedalt reduces the other clients' pairs: expected at least 6 clients, found 5"):
        create("fedalt", krum, clients=5)
    game = toy.start(create("fedalt", krum, clients=6), 2)
    sites = [Client(id=f"c{k}", num_examples=1, rank=2) for k in range(6)]

    def rest(game: toy.Game) -> float:
        sent = game.strategy.broadcast(game.state, sites[0]).adapter
        return sum(float(abs(array).sum()) for name, array in sent.items() if name.startswith("rest."))

    game = toy.play(game, sites[:5], toy.at_random)  # some were drawn: of one of them there are four others
    assert rest(game) == 0
    assert rest(toy.play(game, sites, toy.at_random)) > 0


def test_a_factory_of_ones_own() -> None:
    assert create("raylora.strategies.fedprox:fedprox", {"mu": 0.5}).name == "fedprox"


@pytest.mark.parametrize("name", ["fedit", "ffa_lora", "med_duallora", "flora", "fedalt"])
def test_reductions_by_name_or_as_they_are(name: str) -> None:
    chosen = "geometric_median" if name == "flora" else "median"
    assert create(name, {"reduce": chosen}).name == name
    assert create("fedit", {"reduce": median()}).name == "fedit"


def test_seed_and_number_of_clients_reach_who_wants_them() -> None:
    def second_start(seed: int) -> bytes:
        strategy = create("flora", seed=seed)
        game = toy.play(toy.start(strategy, 2), [toy.Client(id="a", num_examples=1, rank=2)], toy.at_random)
        return toy.seat(game, toy.Client(id="a", num_examples=1, rank=2)).tree["blocks.0.q.lora_A"].tobytes()

    assert second_start(1) == second_start(1) != second_start(2)
    assert create("scaffold", clients=7).name == "scaffold"


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_round_without_updates_changes_nothing_but_its_number(name: str) -> None:
    strategy = create(name)
    game = toy.start(strategy, 2)
    site = toy.Client(id="a", num_examples=1, rank=2)
    game = toy.play(game, [site], toy.at_random)
    after = strategy.aggregate(game.state, [])
    assert after.round == game.state.round + 1 and after.trees == game.state.trees
    before, later = (strategy.broadcast(state, site) for state in (game.state, after))
    assert later.base_version == before.base_version and later.task.round == before.task.round + 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:", r"SyntaxError: invalid syntax \(theirs_0.py, line 1\) \(\S+theirs_0.py:1\)$"),
        ("def f():\n    raise KeyError('x\\ny')", r"KeyError: 'x\\ny' \(\S+theirs_1.py:2\)$"),
        ("def f():\n    raise SystemExit(3)", r"SystemExit: 3 \(\S+theirs_2.py:2\)$"),
        ("import sys\nsys.exit('bye')", r"SystemExit: bye \(\S+theirs_3.py:2\)$"),
    ],
)
def test_what_goes_wrong_in_a_user_s_module_is_said_with_its_place(tmp_path, monkeypatch, request, text, said):
    number = request.node.callspec.indices["text"]
    (tmp_path / f"theirs_{number}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"^strategy.name theirs_{number}:f: {said}"):
        create(f"theirs_{number}:f", {})
