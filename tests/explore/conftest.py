"""A visit to the playground on the tiny model."""

import pytest

import loc_edit
from loc_edit.experiment.setup import Setup
from loc_edit.explore.session import Session

QUICK = {"rome": {"steps": 3}, "memit": {"steps": 3}, "finetune": {"steps": 4, "eps": 0.5, "lr": 0.05}}


@pytest.fixture
def session(tiny, facts, stats_of, monkeypatch):
    """A session that has chosen the first of the four facts."""
    monkeypatch.setattr(Setup, "stats", stats_of(tiny))
    config = loc_edit.ExperimentConfig(model="tiny", noise="1.5", noise_samples=2, settings=QUICK, essence=False)
    session = Session(Setup(config).with_data(facts, tiny))
    session.choose(facts[0])
    return session
