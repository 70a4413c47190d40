"""`scripts/attack.py`: a short attack does no harm, and harm would be seen."""

import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from loc_edit.experiment.setup import Setup

SCRIPTS = Path(__file__).parents[1] / "scripts"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures memory through /proc"),
]


def test_a_short_attack_does_no_harm_and_harm_is_seen(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(Setup, "model", Setup.model)  # the world sets it; it comes back
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path / "none"))
    from attacking.faults import damage, kill
    from attacking.world import World

    world = World(tmp_path)
    kills = [kill(world, number, random.Random(number), tmp_path / "kill") for number in range(8)]
    damages = [damage(world, number, random.Random(number), tmp_path / "damage") for number in range(8)]
    assert [attempt for attempt in kills + damages if attempt.is_bad] == []
    assert {attempt.outcome for attempt in damages} == {"named", "right"}
    world.rows[next(key for key in world.rows if key.startswith("edits"))] = "another value"
    others = [damage(world, number, random.Random(number), tmp_path / "damage") for number in range(4)]
    assert "silent" in {attempt.outcome for attempt in others}, "one number that differs is seen"


def test_accepting_what_is_good_nowhere_is_harm(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from attacking.feeds import ILLEGAL, VALUES, _accepted
    from attacking.world import Attempt

    outcomes = {_accepted(value) for value in VALUES if value in ILLEGAL or value is ILLEGAL[0]}
    assert outcomes == {"illegal"}
    assert Attempt(0, "feed", "", "illegal").is_bad
    assert _accepted(1) == "accepted"


def test_bad_input_is_refused_by_name(tmp_path):
    """In a process of its own, as users have it: in the tests, every call is held to its annotations."""
    options = ["--kinds", "feed", "--most", "15", "--out", str(tmp_path / "found.csv")]
    command = [sys.executable, str(SCRIPTS / "attack.py"), *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = pd.read_csv(tmp_path / "found.csv")
    assert len(found) == 15
    assert set(found["outcome"]) <= {"named", "accepted"}
    assert (found["outcome"] == "named").mean() > 0.5
