"""Units on Ray: the same rows as in one process, also when an actor or a whole node is lost in the middle."""

import os
import signal
import time

import pandas as pd
import pytest
from runs import assert_same_rows, rows

import loc_edit
from loc_edit.events import listening
from loc_edit.experiment import experiment as experiment_room
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.engine.engine import Engine, compute_tasks
from loc_edit.experiment.engine.lanes import WorkerDied
from loc_edit.experiment.experiment import Experiment

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
NODE = {"num_cpus": 1, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """A head without a core, to which nodes are added: each is a raylet with its processes."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    quick = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "_system_config": quick})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def nodes(cluster):
    """Two nodes of one core each, for one test."""
    made = [cluster.add_node(**NODE) for _ in range(2)]
    cluster.wait_for_nodes()
    yield made
    ray.shutdown()
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)


def on(cluster, workers=2):
    return Engine("ray", workers, cluster.address)


def squares(pause=0.0):
    """What opens a worker that squares numbers and says who it is; 666 ends it, once where a file is named."""

    def open_worker():
        def compute(task):
            number, marker = task
            if marker and not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 666 and not marker:
                os.kill(os.getpid(), signal.SIGKILL)
            if number < 0:
                raise ValueError(f"{number} has no root")
            time.sleep(pause)
            return number**2, os.getpid()

        return compute

    return open_worker


def test_every_task_is_done_once_and_a_stream_stays_with_its_actor(cluster, nodes):
    streams = [[(10 * s + n, "") for n in range(4)] for s in range(6)]
    found = list(compute_tasks(streams, squares(0.2), on(cluster)))
    assert sorted(task for task, _ in found) == sorted(task for stream in streams for task in stream)
    assert all(square == number**2 for (number, _), (square, _) in found)
    of_stream = {s: {pid for (number, _), (_, pid) in found if number // 10 == s} for s in range(6)}
    assert all(len(pids) == 1 for pids in of_stream.values())
    assert len(set.union(*of_stream.values())) == 2
    order = [number for (number, _), _ in found if number < 10]
    assert order == sorted(order)


@pytest.mark.long
def test_a_lost_actor_costs_no_task(cluster, nodes, tmp_path, caplog):
    streams = [[(10 * s + n, str(tmp_path / "died") if (s, n) == (1, 1) else "") for n in range(4)] for s in range(4)]
    found = list(compute_tasks(streams, squares(), on(cluster)))
    assert (tmp_path / "died").exists()
    assert sorted(number for (number, _), _ in found) == sorted(10 * s + n for s in range(4) for n in range(4))
    assert "a worker was lost" in caplog.text


@pytest.mark.long
def test_a_task_that_ends_every_actor_ends_the_run(cluster, nodes):
    with pytest.raises(WorkerDied, match=r"3 workers ended while they computed \(666"):
        list(compute_tasks([[(1, ""), (666, ""), (2, "")]], squares(), on(cluster)))


def test_an_error_in_a_task_is_raised_as_it_is(cluster, nodes):
    with pytest.raises(ValueError, match="-4 has no root"):
        list(compute_tasks([[(1, ""), (-4, "")]], squares(), on(cluster)))


@pytest.mark.long
def test_a_lost_node_costs_no_task(cluster, nodes):
    streams = [[(10 * s + n, "") for n in range(3)] for s in range(8)]
    found = []
    for result in compute_tasks(streams, squares(0.1), on(cluster)):
        found.append(result)
        if len(found) == 4:
            cluster.remove_node(nodes[0], allow_graceful=False)  # the raylet and its workers are killed
    assert sorted(number for (number, _), _ in found) == sorted(10 * s + n for s in range(8) for n in range(3))


@pytest.mark.long
def test_results_do_not_pile_up(cluster, nodes):
    at_work = compute_tasks([[(n, "") for n in range(50)]], squares(), on(cluster, 1))
    next(at_work)
    time.sleep(1.0)  # the actor could do all of them meanwhile
    assert len(ray.util.list_named_actors()) == 0
    began = time.monotonic()
    rest = list(at_work)
    assert len(rest) == 49
    assert began < time.monotonic()


@pytest.fixture
def config(tmp_path):
    return ExperimentConfig(
        facts=4,
        layers=(3,),
        methods=("finetune-1",),
        problems=("error_injection", "fact_forcing"),
        chunk=1,
        noise_samples=2,
        windows=(3,),
        settings={"finetune": {"steps": 2}},
        essence=False,
        out=str(tmp_path / "run"),
    )


def same(one, other):
    """The rows are equal but for what another process rounds otherwise."""
    assert_same_rows(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_a_run_on_ray_has_the_rows_of_one_in_this_process(cluster, nodes, config, tmp_path, monkeypatch):
    whole = Experiment(config).run()
    options = {"engine": "ray", "address": cluster.address, "workers": 2}
    spread = Experiment(config.model_copy(update=options | {"out": str(tmp_path / "ray")})).run()
    same(whole, spread)
    assert spread.config == whole.config, "where rows are computed is no part of what they are"

    # and once more, with an actor killed in the middle, and then a node
    marker = str(tmp_path / "died")

    def open_worker(*args):
        from loc_edit.experiment import experiment  # there, where it is not replaced

        worker = experiment._open_worker(*args)

        def compute(unit):
            if unit.facts == (2,) and not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return worker(unit)

        return compute

    monkeypatch.setattr(experiment_room, "_open_worker", open_worker)
    shards = []

    def watch(event):
        if event.name != "shard":
            return
        shards.append(event.fields["shard"])
        if len(shards) == 6:
            cluster.remove_node(nodes[1], allow_graceful=False)

    with listening(watch):
        torn = Experiment(config.model_copy(update=options | {"out": str(tmp_path / "torn")})).run()
    assert os.path.exists(marker)
    same(whole, torn)
    assert not torn.read("edits").duplicated(["problem", "method", "layer", "window", "fact_id"]).any()
    log = pd.read_json(torn.path / "log.jsonl", lines=True)
    assert (log["event"] == "shard").sum() == len(shards), "no shard is written twice"
    assert log["message"].dropna().str.contains("a worker was lost").any()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_refused_at_once(address):
    ray.shutdown()
    with pytest.raises(ConnectionError, match=f"no Ray cluster at '{address}'"):
        list(compute_tasks([[(1, "")]], squares(), Engine("ray", 1, address)))


def test_without_an_address_ray_is_started_for_the_run_and_ended_after_it(config, tmp_path):
    ray.shutdown()
    made = config.model_copy(update={"engine": "ray", "workers": 1, "facts": 1})
    run = Experiment(made).run()
    assert not ray.is_initialized()
    assert len(rows(run)[1]) == 2 + 2 + 2  # edits, without an edit, at a layer drawn by lot
    assert isinstance(run, loc_edit.Run)


PLUGIN = """
from dataclasses import dataclass

import torch

import loc_edit


@dataclass(frozen=True)
class LongSettings:
    length: float = 1.0


@loc_edit.editor("long", settings=LongSettings)
def long(model, requests, layers, *, settings):
    updates = [loc_edit.WeightUpdate(layer, full=0.01 * settings.length * model.W_out[layer]) for layer in layers]
    return [loc_edit.Edit(tuple(updates)) for _ in requests]


@loc_edit.localizer("flat")
def flat(question):
    return torch.ones(question.model.cfg.n_layers, len(question.prompt))
"""


@pytest.mark.long
@pytest.mark.usefixtures("registries")
def test_actors_get_the_plug_ins_of_the_caller(cluster, nodes, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    options = {"plugins": (str(file),), "methods": ("long",), "localizers": ("causal_tracing", "flat"), "layers": (1,)}
    more = {"facts": 4, "chunk": 2, "essence": False, "corpus": "identity", "settings": {"long": {"length": 3.0}}}
    there = ExperimentConfig(**options, **more, engine="ray", workers=2, address=cluster.address)
    here = ExperimentConfig(**options, **more)
    file.unlink()  # what the actors run came with the tasks
    alone = Experiment(here).run(tmp_path / "here")
    assert_same_rows(alone, Experiment(there).run(tmp_path / "there"))
    assert (alone.edits.query("method == 'long'")["status"] == "done").all()
