"""A few seconds of the fuzz of what reads files from outside, and the cases that it has found."""

import time

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from benchmarks import fuzz
from raylora import config as configuration
from raylora.core.errors import InputError


@pytest.mark.parametrize(("target", "cases"), [("config", 60), ("manifest", 300), ("nifti", 300)])
def test_readers_take_or_refuse_whatever_comes(target, cases, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SLOW_S", 120)  # this machine may stand still for seconds
    said = [fuzz.one(target, number, tmp_path) for number in range(cases)]
    failed = {number: what for number, what in enumerate(said) if what.startswith("failed")}
    assert not failed and {"taken", "refused"} == {*said}, "both happen, and nothing else"


@pytest.mark.parametrize(
    ("error", "said"),
    [(InputError("no"), "refused"), (KeyError("x"), "failed: KeyError"), (InputError("a\nb"), "failed: a message of several")],
)
def test_a_failure_is_seen_for_what_it_is(tmp_path, monkeypatch, error, said):
    def fail(folder, draw):
        raise error

    monkeypatch.setattr(fuzz, "TARGETS", {"x": fail})
    assert fuzz.one("x", 0, tmp_path).startswith(said)


def test_a_reader_that_hangs_is_a_failure_whatever_it_makes_of_errors(tmp_path, monkeypatch):
    def hang(folder, draw):
        try:
            time.sleep(30)
        except Exception as error:  # as a reader does
            raise InputError("cannot be read") from error

    monkeypatch.setattr(fuzz, "SLOW_S", 1)
    monkeypatch.setattr(fuzz, "TARGETS", {"x": hang})
    assert fuzz.one("x", 0, tmp_path) == "failed: TooSlow: more than 1 s"


def test_a_case_can_be_made_again():
    first, again, other = (fuzz.bytes_broken(b"some bytes" * 9, fuzz.draw_of("nifti", number)) for number in (5, 5, 6))
    assert first == again != other


# ---- what it found


@pytest.mark.parametrize("key", ["int", "Source", "a[b"])
def test_a_key_that_is_called_like_a_type(key):
    with pytest.raises(InputError, match=f"unknown key 'data.{key}'".replace("[", r"\[")):
        configuration.from_dict({"data": {key: 1}})


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]", "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)])],
    ids=["itself", "billions"],
)
def test_aliases_without_end(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match="more than 100000 values"):
        configuration.load(tmp_path / "c.yaml")


def test_a_configuration_of_many_megabytes(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b" " * (1 << 21))
    with pytest.raises(InputError, match="at most 1048576"):
        configuration.load(tmp_path / "c.yaml")


@hypothesis_settings(deadline=None, max_examples=200)
@given(st.sampled_from(["id"]), st.text(max_size=80))
def test_no_id_of_a_manifest_leaves_its_folder(tmp_path_factory, key, text):
    import json
    from pathlib import Path

    from raylora.data import manifest, shards

    value = json.loads(json.dumps(fuzz.good_manifest()["rows"][0])) | {key: text}
    try:
        row = manifest.row_from(value)
    except InputError:
        return
    assert shards.shard_path(Path("/data"), row.id).resolve().parent == Path("/data/studies")
