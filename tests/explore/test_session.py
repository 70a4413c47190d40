"""A visit to the playground without its page: it shows what the package computes, and gives the model back."""

import math
from dataclasses import replace

import pytest
import torch

import loc_edit
from loc_edit.editing.update import Edit
from loc_edit.explore.lines import python_lines
from loc_edit.explore.session import Session, fact_of_texts, texts_of_fact
from loc_edit.models.adapter import VERSION
from loc_edit.models.identity import checksums


def test_it_traces_as_the_package_does(session, tiny, facts):
    trace = session.locate(window=1)
    prompt = loc_edit.encode(tiny, facts[0])
    noise = loc_edit.subject_noise(tiny, prompt, scale="1.5", samples=2)
    expected = loc_edit.trace(tiny, prompt, facts[0].target_true, noise=noise, window=1)
    assert torch.equal(trace.p_restored, expected.p_restored)
    assert trace.effect.abs().max() > (1e-5 if VERSION < 4 else 1e-6)  # their random weights differ


def test_the_second_edit_is_made_on_top_of_the_first_and_the_model_comes_back(session, tiny, facts):
    weights = checksums(tiny)
    first = session.edit(method="finetune", layer=0)
    second = session.edit(method="finetune", layer=0)
    assert checksums(tiny) == weights
    with first.edit.applied(tiny):
        request = loc_edit.pose(facts[0], "error_injection", tiny)
        [expected] = loc_edit.finetune(tiny, [request], [0], settings=second.settings)
    assert torch.equal(second.edit.delta(0), expected.delta(0))
    assert not torch.equal(second.edit.delta(0), first.edit.delta(0))


def test_before_is_the_unedited_model_and_after_has_all_edits(session, tiny, facts):
    session.edit(method="finetune", layer=0)
    session.choose(facts[1])
    session.edit(method="finetune", layer=1)
    compared = session.compare("error_injection")
    request = loc_edit.pose(facts[1], "error_injection", tiny)
    before = loc_edit.score(tiny, facts[1], request, essence=False).before
    assert compared.score.before == before
    with loc_edit.EditStack(tiny) as stack:
        for made in session.made:
            stack.apply(made.edit)
        after = loc_edit.score(tiny, facts[1], request, essence=False).before
    assert compared.score.after.rewrite == pytest.approx(after.rewrite, rel=1e-4)
    assert after.rewrite != pytest.approx(before.rewrite, rel=1e-3)


def test_essence_is_measured_only_on_request(session, tiny, facts):
    made = session.edit(method="finetune", layer=0)
    assert math.isnan(session.compare("error_injection").score.essence)
    expected = loc_edit.score(tiny, facts[0], made.request, made.edit)
    compared = session.compare("error_injection", essence=True)
    assert compared.score.after.essence == expected.after.essence
    assert compared.score.after.essence != compared.score.before.essence


def test_an_edit_taken_back_leaves_the_others(session, facts):
    made = [session.edit(method="finetune", layer=layer) for layer in (0, 1, 0)]
    session.undo(1)
    assert session.made == (made[0], made[2])
    session.undo()
    session.undo()
    assert session.made == ()
    assert session.compare("error_injection") is None
    assert session.shown() is None
    with pytest.raises(ValueError, match="there are 0"):
        session.undo()


def test_the_download_is_all_edits(session, tmp_path):
    for layer in (0, 1):
        session.edit(method="finetune", layer=layer)
    path = session.save(tmp_path)
    loaded = Edit.load(path)
    assert path.name == "2_edits.safetensors"
    assert all(torch.equal(loaded.delta(layer), session.together.delta(layer)) for layer in (0, 1))


@pytest.mark.parametrize(
    ("problem", "method", "localizer"),
    [
        ("error_injection", "rome", "causal_tracing"),
        ("fact_forcing", "memit-1", "attribution"),
        ("fact_amplification", "finetune", "mean_ablation"),
    ],
)
def test_the_python_lines_do_the_same(
    session, tiny, facts, stats_of, monkeypatch, tmp_path, problem, method, localizer
):
    session.locate(localizer, window=1)
    session.edit("fact_amplification", "finetune", 0)
    session.edit(problem, method, 1)
    compared = session.compare(problem, essence=method == "finetune")
    lines = python_lines(session)
    monkeypatch.setattr(loc_edit, "load_model", lambda name: tiny)
    monkeypatch.setattr(loc_edit, "load_facts", lambda name, seed: facts)
    monkeypatch.setattr(loc_edit, "key_stats", lambda *given, **more: stats_of(tiny))
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(lines, values)
    assert torch.equal(values["trace"].p_restored, session.trace.p_restored)
    assert torch.equal(values["together"].delta(1), session.together.delta(1))
    assert values["score"].after == compared.score.after
    assert torch.equal(Edit.load("edit.safetensors").delta(1), session.together.delta(1))


def test_the_panel_gets_the_numbers_of_the_trace_and_of_the_scores(session, facts):
    assert session.shown() is None
    session.locate(window=1)
    shown = session.shown(layer=1)
    [record] = shown["explorer"]["facts"]
    assert record["prompt"] == facts[0].prompt
    assert record["traces"]
    assert not record["edits"]
    session.edit(method="finetune", layer=1)
    compared = session.compare("error_injection")
    shown = session.shown()
    [record] = shown["explorer"]["facts"]
    assert record["edits"]["0"]["target"] == facts[0].target_new
    assert [token for token, _ in record["next"]] == [token for token, _ in compared.view.before]
    assert shown["written"] == compared.written
    assert shown["edited"] == 1


def test_a_fact_goes_to_the_fields_and_back(session, facts):
    for fact in facts:
        assert fact_of_texts(session.setup, facts, texts_of_fact(fact)) is fact
    texts = {**texts_of_fact(facts[0]), "target_new": "somewhere"}
    own = fact_of_texts(session.setup, facts, texts)
    assert texts_of_fact(own) == texts
    assert own.fact_id != facts[0].fact_id


def test_a_known_fact_keeps_the_place_of_its_subject(session):
    twice = loc_edit.Fact(template="Rome and {} is", subject="Rome", target_true="Paris", fact_id=9)
    assert fact_of_texts(session.setup, [twice], texts_of_fact(twice)) is twice
    assert fact_of_texts(session.setup, [], texts_of_fact(twice)).template == "{} and Rome is"


def test_an_own_fact_without_an_object_has_the_model_s(session, tiny):
    texts = dict.fromkeys(("target_true", "target_new", "paraphrases", "neighbors"), "")
    typed = fact_of_texts(session.setup, (), {**texts, "prompt": "The river is in", "subject": "The river"})
    assert typed.template == "{} is in"
    assert typed.target_true
    [answer] = loc_edit.answers(tiny, [typed], n_tokens=1)
    assert answer.text.strip() in ("", typed.target_true)


@pytest.mark.parametrize(
    ("prompt", "subject"), [("The river is in", "The lake"), ("The river is in", ""), ("{} of it", "of")]
)
def test_a_subject_that_is_not_in_the_prompt_is_refused(session, prompt, subject):
    texts = dict.fromkeys(("target_true", "target_new", "paraphrases", "neighbors"), "Paris")
    with pytest.raises(loc_edit.BadFact, match="the subject"):
        fact_of_texts(session.setup, (), {**texts, "prompt": prompt, "subject": subject})


def test_what_makes_no_sense_is_refused_and_nothing_changes(session, tiny, facts):
    weights = checksums(tiny)
    session.choose(replace(facts[0], target_new=None))
    for refused in (
        lambda: session.edit(method="finetune", layer=0),
        lambda: session.edit("fact_amplification", "finetune", 7),
        lambda: session.edit("fact_amplification", "romeo", 0),
        lambda: session.locate("nowhere"),
        lambda: Session(session.setup).locate(),
        lambda: session.together,
    ):
        with pytest.raises(ValueError, match=r"\w"):
            refused()
    assert session.made == ()
    assert checksums(tiny) == weights
