"""Where clients run changes no number: one Ray for all of these tests."""

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from small_runs import run, settings, tiny

from benchmarks.processes import family, title
from raylora import config as configuration
from raylora import launch
from raylora.cluster import client_actor, resources, session
from raylora.cluster.client_actor import RayExecutor
from raylora.core.errors import InputError, MachineError, RunError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

RATE = {"strategy": {"name": "rate_my_lora", "temperature": 0.1}}
DUAL = {"strategy": {"name": "med_duallora", "head": "private"}}


KEPT = []
"""Clients' actors that a test has left to the next one: each has loaded torch, and does another experiment as a new one would (tested below)."""


@pytest.fixture(autouse=True, scope="module")
def kept():
    yield
    give_up()


def give_up():
    while KEPT:
        ray.kill(KEPT.pop())


def on_ray(config, out, kind=RayExecutor, ready=KEPT, **options):
    """The rounds in this process, the clients in actors: as the driver actor does it."""
    made = []

    def executor(plan):
        request = resources.request_of(plan, session.available())
        made.append(kind(plan.spec, plan.weights, request, config.placement.timeout_s, ready, keep=True))
        return made[-1]

    return run(config, out, executor=executor, **options), made[0]


def timeless(found):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found.lines]


def same_run(found, expected) -> None:
    assert found.hashes == expected.hashes
    assert pq.read_table(found.folder / "cases.parquet").equals(pq.read_table(expected.folder / "cases.parquet"))
    assert timeless(found) == timeless(expected)
    assert found.summary["final"] == expected.summary["final"]
    assert [found.summary[way] for way in ("bytes_up", "bytes_down")] == [expected.summary[way] for way in ("bytes_up", "bytes_down")]


def test_one_actor_for_all_clients(runs, prepared_folder, tmp_path):
    found, executor = on_ray(tiny(prepared_folder, "disease", **RATE, placement={"clients_per_actor": 4}), tmp_path)
    assert len(executor.describe()) == 1
    same_run(found, runs("disease", **RATE))


def test_actors_that_are_kept_do_another_experiment_as_new_ones_would(runs, prepared_folder, tmp_path):
    waiting, pids = KEPT[:1], []
    del KEPT[:1]
    for number, (task, overrides) in enumerate([("disease", RATE), ("segmentation", {}), ("disease", RATE)]):
        config = tiny(prepared_folder, task, **overrides, placement={"clients_per_actor": 4})
        found, executor = on_ray(config, tmp_path / str(number), ready=waiting)
        same_run(found, runs(task, **overrides))
        pids.append([actor["pid"] for actor in executor.describe()])
        assert len(waiting) == 1
    assert pids[0] == pids[1] == pids[2]
    ray.kill(waiting[0])  # lost while it waits: it is started again like any other
    found, executor = on_ray(config, tmp_path / "lost", ready=waiting)
    assert found.hashes == runs("disease", **RATE).hashes and executor.describe()[0]["restarts"] == 1
    executor.owed.add("an answer")
    executor.close()
    assert len(waiting) == 1, "one that owes an answer is not kept"
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(waiting[0].probe.remote(1))


class Stopping(RayExecutor):
    """One actor stops in the second round (SIGSTOP): it lives, holds its memory and answers nothing."""

    def train(self, stacks):
        if stacks[0][0][1].task.round == 1:
            self.timeout_s = 1.0
            os.kill(self.places[0].pid, signal.SIGSTOP)
        yield from super().train(stacks)


def test_a_client_that_hangs_ends_the_run_and_nothing_is_left_of_it(prepared_folder, tmp_path):
    made = []

    def stopping(*arguments, **options):
        made.append(Stopping(*arguments, **options))
        return made[0]

    with pytest.raises(MachineError, match=r"^no answer for 1 s \(placement.timeout_s\) from clients ") as caught:
        on_ray(tiny(prepared_folder, "disease", placement={"clients_per_actor": 2}), tmp_path, stopping)
    assert {*made[0].request.groups[0]} <= {*str(caught.value).split(" clients ")[1].split(", ")}
    for place in made[0].places:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(place.pid).wait(60)


def test_the_same_faults_for_any_number_of_actors(runs, prepared_folder, tmp_path):
    dials = {
        "faults": {"dropout": 0.2, "late_s": 3.0, "slow": 0.3, "byzantine": 0.25, "label_noise": 0.2, "missing_slices": 0.2},
        "network": {"up_mbit": 0.1, "spread": 1.0, "step_s": 1.0, "speed_spread": 0.5, "outage": 0.2},
        "sampling": {"buffer": 2},
        "training__rounds": 4,
    }
    found, executor = on_ray(tiny(prepared_folder, "disease", **dials, placement={"clients_per_actor": 2}), tmp_path)
    assert len(executor.describe()) == 2
    same_run(found, runs("disease", **dials))
    assert found.summary["virtual_seconds"] == runs("disease", **dials).summary["virtual_seconds"] > 0


STACKED = {
    "training__stack": 2,
    "training__rounds": 4,
    "sampling": {"kind": "uniform", "fraction": 0.75},
    "strategy": {"name": "med_duallora", "head": "private"},
    "evaluation__every": 2,
}
"""Three of four clients a round: who shares a pass with whom changes from round to round, and private state with it."""


@pytest.mark.parametrize("packed", [4, 1])
def test_stacks_are_the_same_for_any_number_of_actors(runs, prepared_folder, tmp_path, packed):
    found, executor = on_ray(tiny(prepared_folder, "disease", **STACKED, placement={"clients_per_actor": packed}), tmp_path)
    assert len(executor.describe()) == {4: 1, 1: 2}[packed], "an actor has whole stacks"
    same_run(found, runs("disease", **STACKED))


class Killing(RayExecutor):
    """Kills one actor in the second round, after the first of its two clients has answered."""

    victim = ""
    call_s = 1e-9

    def train(self, stacks):
        answered = set()
        for outcome in super().train(stacks):
            answered.add(outcome.update.client_id)
            index = self.home[outcome.update.client_id]
            if stacks[0][0][1].task.round == 1 and not self.victim and not answered.issuperset(self.request.groups[index]):
                self.victim = outcome.update.client_id
                os.kill(self.places[index].pid, signal.SIGKILL)
            yield outcome


def test_two_actors_one_of_which_is_killed(runs, prepared_folder, tmp_path):
    """The client that had answered is not asked again and keeps what it had learnt; the other starts the round again."""
    options = {**DUAL, "training__rounds": 3}
    found, executor = on_ray(tiny(prepared_folder, "disease", **options, placement={"clients_per_actor": 2}), tmp_path, Killing)
    assert executor.victim and sorted(actor["restarts"] for actor in executor.describe()) == [0, 1]
    same_run(found, runs("disease", **options))


class LossFirst(RayExecutor):
    """Kills one actor in the second round when the first of its two clients has answered, and looks at that answer last."""

    call_s = 1e-9

    def _outcomes(self, asked_for, under_way):
        if asked_for[0][0][0][1].task.round == 1:
            answered, owed = (asked.answer for asked in under_way.values() if asked.index == 0)
            ray.wait([answered])
            os.kill(self.places[0].pid, signal.SIGKILL)
            ray.wait([owed])
        yield from super()._outcomes(asked_for, under_way)


def test_an_answer_that_is_read_after_its_actor_was_lost(runs, prepared_folder, tmp_path, monkeypatch):
    """Of answers that are there Ray names any first. The new actor does not have what that client keeps: it comes with the next call."""
    wait = ray.wait

    def latest(references, num_returns=1, timeout=None):
        ready, others = wait(references, num_returns=len(references), timeout=timeout)
        return ready[-1:], others

    monkeypatch.setattr(ray, "wait", latest)
    options = {**DUAL, "training__rounds": 3, "training__local_steps": 30}
    found, executor = on_ray(tiny(prepared_folder, "disease", **options, placement={"clients_per_actor": 2}), tmp_path, LossFirst)
    assert [actor["restarts"] for actor in executor.describe()] == [1, 0]
    same_run(found, runs("disease", **options))


class Together(RayExecutor):
    """Whatever an actor has to do in a round after the first it is asked for in one call."""

    call_s = 1000.0
    passes = ()

    def _outcomes(self, asked_for, under_way):
        self.passes += ([len(passes) for passes in asked_for],)
        yield from super()._outcomes(asked_for, under_way)


PEER = {"strategy": {"name": "rate_my_lora", "rule": "peer", "temperature": 0.1}}


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({**DUAL, "training__rounds": 3}, ([1, 1, 1, 1], [2, 2], [2, 2])),
        (PEER, ([1, 1, 1, 1], [1, 1, 1, 1], [2, 2], [1, 1, 1, 1])),  # every second of them is a review
    ],
    ids=["med_duallora", "peer"],
)
def test_passes_that_are_asked_for_together(runs, prepared_folder, tmp_path, options, passes):
    found, executor = on_ray(tiny(prepared_folder, "disease", **options, placement={"clients_per_actor": 2}), tmp_path, Together)
    assert executor.passes == passes
    same_run(found, runs("disease", **options))


def test_an_actor_is_killed_between_two_calls_of_two_passes(runs, prepared_folder, tmp_path, monkeypatch):
    """The clients of the first are not asked again, and what they keep comes back with their next call."""

    class Between(Killing, Together):
        call_s = 1000.0

    monkeypatch.setattr(client_actor, "CALL_PASSES", 2)
    options = {**DUAL, "training__rounds": 3}
    found, executor = on_ray(tiny(prepared_folder, "disease", **options, placement={"clients_per_actor": 4}), tmp_path, Between)
    assert executor.passes == ([1, 1, 1, 1], [2, 2], [2, 2]) and executor.describe()[0]["restarts"] == 1
    same_run(found, runs("disease", **options))


class WhileScoring(Together):
    """Kills one actor when it has a validation to do, and the next round behind it."""

    def train(self, stacks):
        answers = super().train(stacks)
        if stacks[0][0][1].task.round == 1:
            os.kill(self.places[0].pid, signal.SIGKILL)
        return answers


def test_an_actor_with_a_validation_and_a_round_to_do_is_killed(runs, prepared_folder, tmp_path):
    """It is started again once, and asked for both again."""
    options = {**DUAL, "training__rounds": 3}
    found, executor = on_ray(tiny(prepared_folder, "disease", **options, placement={"clients_per_actor": 2}), tmp_path, WhileScoring)
    assert [actor["restarts"] for actor in executor.describe()] == [1, 0]
    same_run(found, runs("disease", **options))


def test_stacks_are_the_same_after_an_actor_was_killed(runs, prepared_folder, tmp_path):
    """Its clients' private states come with the next call."""

    class AtOnce(RayExecutor):
        def train(self, stacks):
            if stacks[0][0][1].task.round == 2 and not any(self.restarts):
                os.kill(self.places[0].pid, signal.SIGKILL)
            yield from super().train(stacks)

    found, executor = on_ray(tiny(prepared_folder, "disease", **STACKED, placement={"clients_per_actor": 2}), tmp_path, AtOnce)
    assert sorted(actor["restarts"] for actor in executor.describe()) == [0, 1]
    same_run(found, runs("disease", **STACKED))


def test_stacks_are_the_same_after_a_resume_on_other_actors(runs, prepared_folder, tmp_path):
    class Interrupted(RayExecutor):
        def train(self, stacks):
            if stacks[0][0][1].task.round == 3:
                raise KeyboardInterrupt
            yield from super().train(stacks)

    options = {**STACKED, "placement": {"clients_per_actor": 4}}
    with pytest.raises(KeyboardInterrupt):
        on_ray(tiny(prepared_folder, "disease", **options), tmp_path, Interrupted)
    found, _ = on_ray(tiny(prepared_folder, "disease", **{**options, "placement": {"clients_per_actor": 2}}), tmp_path, resume=True)
    same_run(found, runs("disease", **STACKED))


def test_auto_measures_in_an_actor_and_writes_down_what_it_found(prepared_folder, tmp_path):
    config = tiny(prepared_folder, "disease", training__stack="auto", placement={"clients_per_actor": 2})
    found, executor = on_ray(config, tmp_path / "auto")
    (note,) = [event["text"] for event in found.events if "training.stack: auto is" in event.get("text", "")]
    chosen = configuration.load(tmp_path / "auto" / "config.yaml").training.stack
    assert chosen in (1, 2) and note.startswith(f"training.stack: auto is {chosen} here (clients in a pass: 1: ")
    assert found.summary["numerics"]["stack"] == chosen == executor.stack
    again = run(configuration.load(tmp_path / "auto" / "config.yaml"), tmp_path / "again")
    assert again.hashes == found.hashes and again.summary["config_sha256"] == found.summary["config_sha256"]


def test_four_actors_on_quarters_of_a_gpu_by_the_whole_path(runs, prepared_folder, tmp_path, mlflow_uri):
    """As the command does it: driver actor, client actors, MLflow, report. (Nothing here computes on a GPU: Ray only keeps its books.)"""
    shares = {"gpus_per_client": 0.25, "cpus_per_client": 0.5}  # beside the actors that are kept
    config = tiny(prepared_folder, "disease", **RATE, placement=shares, tracking={"uri": mlflow_uri})
    events = []
    summary = launch.run(config, tmp_path / "run", on_event=events.append)
    expected = runs("disease", **RATE)
    assert summary["adapter_sha256"] == expected.hashes and summary["final"] == expected.summary["final"]
    assert sorted((actor["clients"], actor["gpus"], actor["restarts"]) for actor in summary["actors"]) == [
        ([c], 0.25, 0) for c in sorted(summary["clients"])
    ]
    assert len({actor["pid"] for actor in summary["actors"]} | {summary["driver"]["pid"], os.getpid()}) == 6
    assert summary["numerics"]["device"] == "cpu" and summary["mlflow"]["run_id"]
    assert [event["event"] for event in events if event["event"] in ("start", "round")] == ["start", "round", "round"]
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert made >= {"config.yaml", "summary.json", "rounds.jsonl", "cases.parquet", "adapters", "checkpoints", "report.html"}
    assert configuration.load(tmp_path / "run" / "config.yaml") == config
    with pytest.raises(InputError, match="this run is finished"):
        launch.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"clients": {"by": "iid", "count": 5}, "placement": {"gpus_per_client": 0.25, "cpus_per_client": 0.5}},
            "5 actors need 2.5 CPUs and 1.25 GPUs",
        ),
        ({"placement": {"gpus_per_client": 0.3}}, "a share of a GPU must be 1/n"),
        (
            {"placement": {"cpus_per_client": 2}},
            "4 actors need 8 CPUs .* the Ray cluster has 4 CPUs and 1 GPUs; placement.clients_per_actor=2 would fit",
        ),
    ],
)
def test_what_the_cluster_does_not_have_is_refused_and_nothing_is_left(prepared_folder, tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    config = configuration.from_dict({**settings(prepared_folder, **overrides), "tracking": {}})
    with pytest.raises(InputError, match=message):
        launch.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_client_s_error_comes_back_with_round_client_and_step(prepared_folder, tmp_path):
    config = tiny(prepared_folder, "disease", training__lr=1e30, training__optimiser="sgd", placement={"clients_per_actor": 4})
    with pytest.raises(RunError, match=r"^round \d+, client \w+(, step \d+)?: ") as caught:
        on_ray(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_wait_has_an_end(prepared_folder, tmp_path):
    config = tiny(prepared_folder, "disease", placement={"clients_per_actor": 4, "timeout_s": 0.001})
    with pytest.raises(RunError, match=r"no answer for 0.001 s \(placement.timeout_s\)"):
        on_ray(config, tmp_path, ready=[])


class Doomed(RayExecutor):
    """One actor dies at every task from the second round on."""

    def train(self, stacks):
        if stacks[0][0][1].task.round == 1:
            self._start = self.dying
            os.kill(self.places[0].pid, signal.SIGKILL)
        yield from super().train(stacks)

    def dying(self, index):
        actor, where = RayExecutor._start(self, index)
        os.kill(ray.get(where).pid, signal.SIGKILL)
        return actor, where


def test_a_loss_is_borne_three_times_in_a_row_and_no_more(prepared_folder, tmp_path):
    made = []

    def doomed(*arguments, **options):
        made.append(Doomed(*arguments, **options))
        return made[0]

    with pytest.raises(MachineError, match="their actor was lost 4 times in a row"):
        on_ray(tiny(prepared_folder, "disease", placement={"clients_per_actor": 2}), tmp_path, doomed)
    assert made[0].losses[0] == 4 and made[0].losses[1] == 0


def test_what_goes_wrong_where_a_client_starts_is_its_error_and_no_loss(prepared_folder, tmp_path):
    class Elsewhere(RayExecutor):
        def __init__(self, spec, *rest, **options):
            super().__init__(replace(spec, sites=tuple(replace(s, training=("nobody",)) for s in spec.sites)), *rest, **options)

    with pytest.raises(RunError, match=r"client \w+: KeyError: .nobody.$") as caught:
        on_ray(tiny(prepared_folder, "disease", placement={"clients_per_actor": 4}), tmp_path, Elsewhere)
    assert not isinstance(caught.value, MachineError), "to resume would not help"


def test_a_driver_that_is_killed_ends_the_run_with_a_word_and_resume_goes_on(runs, prepared_folder, tmp_path):
    config = tiny(prepared_folder, "disease", training__rounds=16, placement={"clients_per_actor": 4})

    def kill(event):
        if event["event"] == "round" and event["round"] == 1:
            (driver,) = [pid for pid in family(os.getpid()) if title(pid).startswith("ray::DriverActor")]
            assert "libtorch" not in Path(f"/proc/{driver}/maps").read_text(), "the driver keeps the books; only actors compute"
            os.kill(driver, signal.SIGKILL)

    with pytest.raises(MachineError, match=rf"^the driver was lost: .*; `raylora resume {tmp_path / 'run'}` goes on") as caught:
        launch.run(config, tmp_path / "run", on_event=kill)
    assert "\n" not in str(caught.value)
    summary = launch.resume(tmp_path / "run")
    assert summary["adapter_sha256"] == runs("disease", training__rounds=16).hashes


def test_the_doctor_asks_every_node():
    from raylora import doctor
    from raylora.cluster import probe

    (node,) = probe.nodes(ray.get_runtime_context().gcs_address)
    here = probe.here()
    assert "error" not in node and {key: node[key] for key in ("cpus", "versions", "code")} == {
        key: here[key] for key in ("cpus", "versions", "code")
    }
    (anybody,) = [one for one in doctor.cluster(here, [node], None) if one.wrong]
    assert anybody.what == "Ray address"
