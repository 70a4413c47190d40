"""The scripts of docs/clusters.md on a real Slurm of one node: submitted, preempted, requeued, finished."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import assert_same_rows
from servers import free_port, wait_for

from loc_edit.analysis.run import load_run

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("ray"),  # `ray symmetric-run` ends every Ray of the machine
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="needs Slurm (Debian: slurm-wlm, munge)"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="Slurm starts jobs as root"),
]

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
MINE = """
facts = 6
chunk = 1
layers = [1, 3, 5]
methods = ["rome", "finetune-1"]
windows = [1]
essence = false
corpus = "identity"
settings = { rome.steps = 3, finetune.steps = 3 }
"""
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ReturnToService=2
KillWait=15
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=requeue_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=high Nodes=ALL PriorityTier=10
"""


def wait(condition, seconds=300.0):
    wait_for(condition, seconds, pause=0.2)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A function that asks Slurm something and returns what it prints."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    ports = [free_port(), free_port()]
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, ports=ports))
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    munge = [f"--{name}={folder / place}" for name, place in (("key-file", "key"), ("socket", "munge.socket"))]
    munge += [f"--{name}={folder / name}" for name in ("pid-file", "log-file", "seed-file")]
    subprocess.run(["munged", "--force", *munge], check=True)

    def ask(*command, **more):
        run = subprocess.run(command, env=environment | more, text=True, capture_output=True, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout

    for program in ("slurmctld", "slurmd"):
        ask(program)
    wait(lambda: "idle" in ask("sinfo", "--noheader"), 60)
    yield ask
    subprocess.run(["scancel", "--user=root"], env=environment, check=False)
    time.sleep(2)
    for name in ("slurmd.pid", "slurmctld.pid", "pid-file"):
        if (folder / name).exists():
            os.kill(int((folder / name).read_text()), signal.SIGTERM)


def scripts():
    """The two scripts of the page: for one machine, and for several with Ray."""
    section = PAGE.read_text().partition("## Slurm\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(#!/bin/bash\n.*?)```", section, flags=re.DOTALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of the experiment without Slurm."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "my.toml").write_text(MINE)
    command = [sys.executable, "-m", "loc_edit", "run", "--config", folder / "my.toml", "--out", folder / "run"]
    subprocess.run([*command, "--workers", "1"], check=True, capture_output=True)
    return load_run(folder / "run")


@pytest.mark.parametrize("several", [False, True], ids=["one", "ray"])
def test_a_preempted_job_is_requeued_and_ends_in_the_same_rows(slurm, whole, tmp_path, several):
    assert len(scripts()) == 2
    (tmp_path / "job.sh").write_text(scripts()[several])
    (tmp_path / "my.toml").write_text(MINE)
    about = {"SCRATCH": str(tmp_path)}
    smaller = ["--cpus-per-task=2", *["--nodes=1", "--gpus-per-node=0"] * several]
    place = ["--chdir", str(tmp_path), "--output", str(tmp_path / "job.log")]
    job = slurm("sbatch", "--parsable", *smaller, *place, str(tmp_path / "job.sh"), **about).strip()
    folder = tmp_path / "runs" / "mine"
    wait(lambda: len(list(folder.glob("*/*.parquet"))) >= 2)
    urgent = slurm("sbatch", "--parsable", "--partition=high", "--cpus-per-task=2", *place, "--wrap", "sleep 1").strip()

    def state(number):
        return re.search(r"JobState=(\w+)", slurm("scontrol", "show", "job", number))[1]

    wait(lambda: state(urgent) == "COMPLETED")
    n_before = len(list(folder.glob("*/*.parquet")))
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
    wait(lambda: state(job) not in ("RUNNING", "PENDING", "COMPLETING"))
    assert state(job) == "COMPLETED", (tmp_path / "job.log").read_text()
    run = load_run(folder)
    assert 2 <= n_before < len(run.shards("traces")) + len(run.shards("edits"))
    assert_same_rows(run, whole, rtol=1e-4, atol=1e-5)
    assert "Traceback" not in (tmp_path / "job.log").read_text()
