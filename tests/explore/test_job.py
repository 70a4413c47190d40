"""A computation beside the page: its progress is seen, and it stops at its next step."""

import threading

import pytest

from loc_edit import events
from loc_edit.explore.job import Cancelled, Job
from loc_edit.models.identity import checksums


def test_progress_is_told_and_the_result_is_there():
    go_on = threading.Event()

    def work():
        events.step("steps", 2, 7)
        go_on.wait(5)
        return "made"

    job, said = Job("editing", work), []
    for line in job.progress():
        said.append(line)
        if "2 of 7 steps" in line:
            go_on.set()
    assert said[0].startswith("editing")
    assert go_on.is_set()
    assert job.result == "made"


def slow_steps():
    """A list, and work of a thousand slow steps that puts each into it."""
    done = []

    def work():
        for step in range(1000):
            events.step("steps", step, 1000)
            done.append(step)
            threading.Event().wait(0.02)

    return done, work


def test_a_cancelled_job_ends_at_its_next_step():
    done, work = slow_steps()
    job = Job("editing", work)
    progress = job.progress()
    next(progress)
    job.cancel()
    with pytest.raises(Cancelled):
        list(progress)
    assert len(done) < 1000
    assert not events.has_listeners()


def test_a_page_that_is_closed_ends_its_job():
    done, work = slow_steps()
    progress = Job("editing", work).progress()
    next(progress)
    progress.close()
    n_done = len(done)
    threading.Event().wait(0.1)
    assert len(done) == n_done < 1000
    assert not events.has_listeners()


def test_an_error_arrives_where_the_job_is_watched():
    def work():
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        list(Job("editing", work).progress())


@pytest.mark.parametrize("act", ["locate", "edit", "second edit"])
def test_a_stop_leaves_the_model_as_it_was(session, tiny, act):
    if act == "second edit":
        session.edit(method="finetune", layer=0)
    weights, made, steps = checksums(tiny), session.made, []

    def stop_at_the_third(event):
        steps.append((event, checksums(tiny) != weights))
        if len(steps) == 3:
            raise Cancelled

    with pytest.raises(Cancelled), events.listening(stop_at_the_third):
        session.locate(window=1) if act == "locate" else session.edit(method="finetune", layer=1)
    assert steps[-1][1] == (act == "second edit")  # the first edit stood in the weights, and is gone
    assert checksums(tiny) == weights
    assert session.made == made


def test_a_stop_while_texts_are_decoded_takes_nothing_and_leaves_nothing(session, tiny):
    session.edit(method="finetune", layer=0)
    clean, made, changed = checksums(tiny), session.made, []

    def stop_in_the_edited_model(event):
        if event.name == "step" and event.fields["task"] == "decoded tokens":
            changed.append(checksums(tiny) != clean)
            if changed[-1]:
                raise Cancelled

    with pytest.raises(Cancelled), events.listening(stop_in_the_edited_model):
        session.compare("error_injection", essence=True)
    assert changed.count(False) > 0, "the texts of the unedited model were decoded before"
    assert changed.count(True) == 1
    assert checksums(tiny) == clean
    assert session.made == made
    assert session.comparison is None


def test_a_run_s_log_has_no_steps(tmp_path):
    from loc_edit.experiment.run_log import _LogFile

    log = _LogFile(tmp_path / "log")
    for event in (events.Event("step", {"done": 1}), events.Event("progress", {}), events.Event("end", {})):
        log.write_event(event)
    log.close()
    assert (tmp_path / "log").read_text().split() == ["end"]
