"""The configuration: what is read is what is meant, what is wrong is refused by key, and YAML carries it there and back."""

import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raylora.config import Config, dump, from_dict, load, load_around, load_pretrain
from raylora.core.errors import InputError
from raylora.core.values import flat, override
from raylora.sweep.space import Sweep

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo_segmentation.yaml"


def refused(values, key: str, *words: str) -> None:
    """One line that names the key and says the words."""
    with pytest.raises(InputError) as caught:
        from_dict(values, origin="file.yaml")
    text = str(caught.value)
    assert text.startswith("file.yaml: ") and "\n" not in text and len(text) < 300
    for word in (key, *words):
        assert word in text, text


@pytest.mark.parametrize(
    ("values", "key", "near"),
    [
        ({"trainig": {}}, "'trainig'", "training"),
        ({"lora": {"rnak": 4}}, "'lora.rnak'", "rank"),
        ({"data": {"phantom": {"patient": 3}}}, "'data.phantom.patient'", "patients"),
        ({"data": {"dataset": [{"dataset": "acdc", "rot": "x"}]}}, "rot'", "root"),
        ({"data": {"dataset": [{"dataset": "phantom", "phantom": {"shfit": 1}}]}}, "shfit'", "shift"),
        ({"training": {"local_step": 3}}, "'training.local_step'", "local_steps"),
        ({"faults": {"straggler": 1}}, "'faults.straggler'", ""),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_known_one(values, key, near):
    refused(values, f"unknown key {key}" if key.startswith("'") else key, f"did you mean '{near}'?" if near else "known")


@pytest.mark.parametrize(
    ("values", "key", "found"),
    [
        ({"training": {"rounds": "many"}}, "training.rounds", "'many'"),
        ({"training": {"rounds": 2.5}}, "training.rounds", "2.5"),
        ({"training": {"rounds": 0}}, "training.rounds", "0"),
        ({"training": {"lr": -1}}, "training.lr", "-1"),
        ({"training": {"lr": math.nan}}, "training.lr", "nan"),
        ({"training": {"lr": [1]}}, "training.lr", "[1]"),
        ({"training": 3}, "training", "3"),
        ({"training": None}, "training", "None"),
        ({"lora": {"rank": 0}}, "lora.rank", "0"),
        ({"lora": {"rank": -4}}, "lora.rank", "-4"),
        ({"lora": {"rank": "big"}}, "lora.rank", "'big'"),
        ({"lora": {"rank": [2, 0]}}, "lora.rank", "0"),
        ({"lora": {"blocks": 0}}, "lora.blocks", "0"),
        ({"lora": {"blocks": [-1]}}, "lora.blocks", "-1"),
        ({"lora": {"blocks": "some"}}, "lora.blocks", "'some'"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout", "1.0"),
        ({"task": "detection"}, "task", "'detection'"),
        ({"model": {"name": "resnet"}}, "model.name", "'resnet'"),
        ({"data": {"size": [64, 64]}}, "data.size", ""),
        ({"data": {"spacing_mm": [1, 1, -1]}}, "data.spacing_mm", "-1"),
        ({"data": {"dataset": "ukb"}}, "data.dataset", "'ukb'"),
        ({"placement": {"clients_per_actor": 0}}, "placement.clients_per_actor", "0"),
        ({"name": "../escape"}, "name", "'../escape'"),
        ({"name": ""}, "name", "''"),
        ({"seed": "x"}, "seed", "'x'"),
        ({"strategy": 3}, "strategy", "3"),
        ({"sampling": {"fraction": 0.5}}, "sampling", "needs kind uniform, size or poisson"),
        ({"training": {"local_epochs": 1, "local_steps": 2}}, "training", "not both"),
        ({"lora": {"rank": True}}, "lora.rank", "expected a number, found True"),
        ({"lora": {"rank": [2, True]}}, "lora.rank.1", "expected a number, found True"),
        ({"lora": {"blocks": True}}, "lora.blocks", "expected a number, found True"),
        ({"training": {"lr": False}}, "training.lr", "expected a number, found False"),
        ({"lora": {"alpha": math.inf}}, "lora.alpha", "finite number, found inf"),
        ({"training": {"lr": "inf"}}, "training.lr", "finite number, found 'inf'"),
        ({"network": {"speed": math.inf}}, "network.speed", "finite number, found inf"),
        ({"network": {"up_mbit": math.nan}}, "network.up_mbit", "found nan"),
        ({"seed": -1}, "seed", "-1"),
        ({"data": {"split_seed": 2**127}}, "data.split_seed", "less than or equal to 9223372036854775807"),
        ({"data": {"phantom": {"seed": 2**63}}}, "data.phantom.seed", "9223372036854775808"),
        ({"data": {"phantom": {"vendors": []}}}, "data.phantom.vendors", "at least 1 item"),
        ({"data": {"spacing_mm": [0.0001, 1, 1]}}, "data.spacing_mm.0", "greater than or equal to 0.1, found 0.0001"),
        ({"data": {"size": [100000, 64, 8]}}, "data.size.0", "less than or equal to 1024, found 100000"),
        ({"evaluation": {"bootstrap": 10**9}}, "evaluation.bootstrap", "less than or equal to 100000"),
        ({"training": {"threads": 10**6}}, "training.threads", "less than or equal to 1024"),
        ({"training": {"batch_size": 10**6}}, "training.batch_size", "less than or equal to 4096"),
        ({"strategy": {}}, "strategy", "expected a name, found nothing"),
        ({"data": {"root": "/x"}}, "data", "root is for downloads"),
        ({"data": {"dataset": [{"dataset": "phantom", "root": "/x"}]}}, "data.dataset.0", "root is for downloads"),
        ({"clients": {"count": 3}}, "clients", "the data say how many clients there are by vendor, found 3"),
    ],
)
def test_wrong_values_are_refused_by_key(values, key, found):
    refused(values, f" {key}", found)


@pytest.mark.parametrize("word", ["inf", ".inf", "Infinity", "1e999"])
def test_infinity_is_a_number(tmp_path, word):
    path = tmp_path / "c.yaml"
    path.write_text(f"strategy: {{name: rate_my_lora, temperature: {word}}}")
    config = load(path)
    assert config.strategy.options == {"temperature": math.inf}
    path.write_text(dump(config))
    assert load(path) == config and "temperature: .inf" in path.read_text()
    path.write_text("strategy: {name: rate_my_lora, temperature: .inf}")
    assert load(path).sha256() == config.sha256(), "one experiment, one hash"


def test_only_numbers_of_a_strategy_are_numbers():
    config = from_dict(
        {"strategy": {"name": "mine:it", "reduce": {"name": "geometric_median", "eps": "1e-6"}, "words": ["nan", "1_0", "-INF", "x1"]}}
    )
    assert config.strategy.options == {"reduce": {"name": "geometric_median", "eps": 1e-6}, "words": ["nan", "1_0", -math.inf, "x1"]}


def test_infinity_is_kept_where_it_means_something():
    values = {"network": {"up_mbit": {"a": math.inf}, "down_mbit": math.inf}, "clients": {"by": "iid", "count": 2, "sizes": "inf"}}
    config = from_dict({**values, "sampling": {"deadline_s": math.inf}})
    assert (config.network.up_mbit, config.clients.sizes, config.sampling.deadline_s) == ({"a": math.inf}, math.inf, math.inf)


def test_yaml_words_for_numbers_are_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training: {lr: 1e-3}\nstrategy: {name: fedprox, mu: 1e-2}")
    config = load(path, ["lora.alpha=1e1"])
    assert (config.training.lr, config.strategy.options["mu"], config.lora.alpha) == (0.001, 0.01, 10.0)


def test_yamls_false_is_the_word_off(tmp_path):
    (tmp_path / "off.yaml").write_text("training: {cache: off}\n")
    for read in (load(tmp_path / "off.yaml"), from_dict(override({}, ["training.cache=off"]))):
        assert read.training.cache == "off"
        assert from_dict(yaml.safe_load(dump(read))) == read
    with pytest.raises(InputError, match="cache"):
        from_dict({"training": {"cache": True}})


def test_overrides_reach_every_level_and_make_sections(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\nlora: {rank: 2}\ntraining: {local_epochs: 3}\n")
    words = ["lora.rank=8", "data.phantom.patients=5", "strategy.rule=peer", "clients.held_out=[GE]", "data.cache=a=b", "tracking.uri=null"]
    config = load(path, [*words, "training.local_epochs=null", "training.local_steps=7"])
    assert (config.lora.rank, config.data.phantom.patients, config.strategy.options) == (8, 5, {"rule": "peer"})
    assert (config.clients.held_out, config.data.cache, config.tracking.uri) == (["GE"], "a=b", None)
    assert (config.training.local_epochs, config.training.local_steps) == (None, 7)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rank", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("lora.rank.x=3", "rank is not a section"),
        ("lora.rank=[", "not valid YAML"),
        ("loar.rank=3", "unknown key 'loar'"),
    ],
)
def test_overrides_that_mean_nothing_are_refused(tmp_path, word, message):
    path = tmp_path / "c.yaml"
    path.write_text("lora: {rank: 2}")
    with pytest.raises(InputError, match=re.escape(message)):
        load(path, [word])


def test_an_override_leaves_what_it_was_given():
    values = {"lora": {"rank": 2}}
    assert override(values, ["lora.rank=3"]) == {"lora": {"rank": 3}} and values == {"lora": {"rank": 2}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "not valid YAML"),
        (b"y: {a: &x {lr: 1}}\nb: {<<: *x, lr: 2}\nb: 1", "not valid YAML: b stands there twice"),
        (b"training: {lr: 0.1}\ntraining: {rounds: 7}", "not valid YAML: training stands there twice"),
        (b"- a\n- b", "expected a mapping of sections, found list"),
        (b"just words", "expected a mapping of sections, found str"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: &x [*x]", "not valid YAML"),
        (b"2020-01-01: 1", "not valid YAML"),
        (b"!!python/object/apply:os.system [ls]", "not valid YAML"),
        (b"? [a, b]\n: 1", "not valid YAML"),
        (b"1: 2", "unknown key '1'"),
        (b"[" * 5000, "not valid YAML"),
    ],
)
def test_files_that_are_no_configuration_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(path)
    assert "\n" not in str(caught.value) and "c.yaml" in str(caught.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"c\.yaml: no such file"):
        load(tmp_path / "c.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path)


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing\n")
    config = load(tmp_path / "c.yaml")
    assert config == Config() and config.training.local_epochs == 1 and config.tracking.uri == "sqlite:///mlflow.db"


def test_pretraining_has_its_own_keys(tmp_path):
    (tmp_path / "c.yaml").write_text("steps: 3")
    assert load_pretrain(tmp_path / "c.yaml", ["mask=0.5"]).mask == 0.5
    with pytest.raises(InputError, match=r"unknown key 'rounds'"):
        load_pretrain(tmp_path / "c.yaml", ["rounds=3"])


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
POSITIVE = st.floats(min_value=1e-12, max_value=1e12)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "seed": st.integers(0, 2**63 - 1),
        "task": st.sampled_from(["segmentation", "disease"]),
        "data": st.fixed_dictionaries(
            {},
            optional={
                "dataset": st.one_of(
                    st.sampled_from(["phantom", "acdc"]),
                    st.lists(st.fixed_dictionaries({"dataset": st.just("mnms"), "root": TEXT}), min_size=1),
                ),
                "cache": TEXT,
                "fractions": st.tuples(POSITIVE, POSITIVE, st.floats(0, 1), POSITIVE).map(list),
                "phantom": st.fixed_dictionaries({"vendors": st.lists(st.sampled_from(["GE", "Canon"]), min_size=1)}),
            },
        ),
        "clients": st.fixed_dictionaries({"held_out": st.lists(TEXT, max_size=3)}),
        "lora": st.fixed_dictionaries(
            {},
            optional={
                "rank": st.one_of(
                    st.integers(1, 99), st.lists(st.integers(1, 9), min_size=1), st.dictionaries(TEXT, st.integers(1, 9), max_size=3)
                ),
                "blocks": st.one_of(st.just("all"), st.integers(1, 9), st.lists(st.integers(0, 9))),
                "targets": st.one_of(st.none(), st.lists(TEXT)),
            },
        ),
        "strategy": st.fixed_dictionaries(
            {"name": TEXT},
            optional={"temperature": st.one_of(POSITIVE, st.just(math.inf)), "rule": TEXT, "reduce": st.fixed_dictionaries({"name": TEXT})},
        ),
        "training": st.one_of(
            st.fixed_dictionaries({"local_steps": st.integers(1, 9)}),
            st.fixed_dictionaries({"local_epochs": st.integers(1, 9), "lr": POSITIVE}),
        ),
        "model": st.fixed_dictionaries({"sizes": st.dictionaries(TEXT, st.one_of(st.integers(), st.lists(st.integers())), max_size=3)}),
    },
)


@settings(deadline=None, max_examples=60)
@given(CONFIGS)
def test_what_is_dumped_loads_to_the_same(tmp_path_factory, values):
    config = from_dict(values)
    text = dump(config)
    again = from_dict(yaml.safe_load(text))
    assert again == config and again.sha256() == config.sha256() and dump(again) == text
    assert from_dict(override(values, [])) == config, "an override of nothing changes nothing"


def test_the_hash_is_of_what_decides_the_numbers():
    base = from_dict({}).sha256()
    same = [{"name": "b"}, {"placement": {"clients_per_actor": 2}}, {"tracking": {"uri": None}}, {"checkpoint": {"every": 3}}]
    other = [
        {"seed": 1},
        {"lora": {"rank": 5}},
        {"strategy": {"name": "local"}},
        {"strategy": {"name": "fedit", "head": "private"}},
        {"data": {"split_seed": 3}},
    ]
    assert {from_dict(values).sha256() for values in same} == {base}
    assert len({from_dict(values).sha256() for values in other} | {base}) == 6


# ---- one file laid over another


def test_a_base_is_overlaid_section_by_section(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "ground.yaml").write_text("name: ground\nlora: {rank: 2, alpha: 3.0}\nstrategy: {name: fedit}\n")
    (tmp_path / "deep" / "middle.yaml").write_text("base: ../ground.yaml\nlora: {rank: 4}\ndata: {size: [8, 8, 8]}\n")
    (tmp_path / "top.yaml").write_text("base: deep/middle.yaml\nname: top\nstrategy: {name: fedprox, mu: 0.1}\ndata: {size: [4, 4, 4]}\n")
    config = load(tmp_path / "top.yaml", ["lora.alpha=5"])
    assert (config.name, config.lora.rank, config.lora.alpha, config.data.size) == ("top", 4, 5.0, (4, 4, 4))
    assert config.strategy.name == "fedprox" and config.strategy.options == {"mu": 0.1}
    assert load(tmp_path / "top.yaml", ["base=ground.yaml"]).lora.rank == 2
    assert "base" not in yaml.safe_load(dump(config))


def test_a_base_that_is_missing_or_the_file_itself_is_refused(tmp_path):
    file = tmp_path / "top.yaml"
    for text, message in (
        ("base: no.yaml", "no.yaml: no such file"),
        ("base: top.yaml", "base: top.yaml is laid over this file itself"),
        ("base: [1]", r"base: expected the path of another YAML file, found \[1\]"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            load(file)


def test_a_file_of_the_other_kind_is_said_to_be_one(tmp_path):
    """Somebody's `raylora run sweep.yaml`, and `raylora sweep run.yaml`."""
    files = {"one": "lora: {rank: 2}", "sweep": "base: one.yaml\nspace: {}", "stress": "base: one.yaml\ndials: {}"}
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(InputError, match=r"sweep.yaml: space: this is the file of a sweep, .*: `raylora sweep .*sweep.yaml` runs it$"):
        load(tmp_path / "sweep.yaml")
    with pytest.raises(InputError, match=r"stress.yaml: dials: this is the file of a stress campaign, .*`raylora stress .*stress.yaml`"):
        load(tmp_path / "stress.yaml")
    with pytest.raises(
        InputError, match=r"one.yaml: base: expected .*, found nothing \(`raylora run` is for the file of one experiment\)$"
    ):
        load_around(Sweep, tmp_path / "one.yaml")


@pytest.mark.parametrize("text", ['!!float ""', "!!timestamp foo", "!!int ''"])
def test_a_tag_before_nothing_is_not_yaml(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"seed: {text}")
    with pytest.raises(InputError, match=r"c.yaml: not valid YAML"):
        load(tmp_path / "c.yaml")
    with pytest.raises(InputError, match=r"^override .*: the value is not valid YAML"):
        override({}, [f"seed={text}"])


def test_numbers_that_nothing_could_be_done_with_are_refused():
    refused({"training": {"rounds": 10**11}}, "training.rounds", "less than or equal to 100000")
    refused({"privacy": {"clip": 1.0, "sigma": 1e200}}, "privacy.sigma", "less than or equal to 1000000")


def test_nested_values_have_dotted_keys():
    """An empty section leaves none: it has no text for a table or a database."""
    assert flat({"z": 0, "a": {"y": 0, "b": {"c": 1}, "d": [1, 2]}, "e": {}}) == {"z": 0, "a.y": 0, "a.b.c": 1, "a.d": [1, 2]}
    assert flat(Config().as_dict())["data.phantom.patients"] == 100


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=0.1", "unknown key 'lr', did you mean training.lr?"),
        ("data.size=64", "data.size: expected a list of values in brackets, found 64"),
        ("data.size=[64,64]", "data.size: expected more values, found [64, 64]"),
        ("data.fractions=[0.7,0.1,0.2]", "data.fractions: expected more values, found [0.7, 0.1, 0.2]"),
        ("training=3", "training: expected a section of keys and values, found 3"),
    ],
)
def test_what_a_newcomer_writes_is_answered_in_words(override, said):
    with pytest.raises(InputError) as caught:
        load(DEMO, [override])
    assert str(caught.value).endswith(said), caught.value


def test_a_strategy_can_be_said_by_its_name_alone():
    assert load(DEMO, ["strategy=flora"]).strategy.name == "flora"
