"""The answers of a model, and the facts it knows, against a loop that runs the whole text again for every token."""

import json
import re
from dataclasses import replace

import pytest
import torch

import loc_edit
from loc_edit import events
from loc_edit.facts.fact import Fact
from loc_edit.prompts import recall as known
from loc_edit.prompts.encoding import BadPrompt, encode, target_tokens
from loc_edit.prompts.recall import answers, known_facts


def slow_answer(model, fact, n_tokens=36):
    """(text, p_true): one full forward a token, one row, no cache."""
    tokens = encode(model, fact).tokens
    prompt = tokens
    target = target_tokens(model, fact.prompt, fact.target_true)
    log_p = model(torch.cat([prompt, target])[None])[0].double().log_softmax(-1)
    p = sum(log_p[len(prompt) - 1 + i, token] for i, token in enumerate(target)).exp().item()
    for _ in range(min(n_tokens, model.cfg.n_ctx - len(prompt))):
        tokens = torch.cat([tokens, model(tokens[None])[0, -1].argmax()[None]])
    return model.tokenizer.decode(tokens[len(prompt) :].tolist()), p


@pytest.fixture
def many(facts):
    """Facts of several prompt lengths, some of them equal."""
    more = [replace(facts[1], subject=name, fact_id=10 + i) for i, name in enumerate(("Anna Rome", "Ola", "Zü", "Ann"))]
    return [*facts, *more]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "answers"


@pytest.fixture
def forwards(monkeypatch):
    """The sizes of the batches of answers that were computed."""
    made = []
    real = known._answer
    monkeypatch.setattr(known, "_answer", lambda *args: made.append(len(args[1])) or real(*args))
    return made


def test_answers_equal_the_slow_loop(editable, many):
    found = answers(editable, many)
    assert [answer.fact_id for answer in found] == [fact.fact_id for fact in many]
    for fact, answer in zip(many, found, strict=True):
        text, p = slow_answer(editable, fact)
        assert answer.text == text
        assert answer.p_true == pytest.approx(p, rel=1e-4)
    assert len({answer.text for answer in found}) > 1


@pytest.mark.parametrize("length", [1, 5])
def test_an_answer_has_its_length(tiny, facts, length):
    for fact, answer in zip(facts, answers(tiny, facts, n_tokens=length), strict=True):
        assert answer.text == slow_answer(tiny, fact, length)[0]


def test_an_end_of_text_inside_an_answer_is_not_padding(make_model, facts):
    model = make_model(seed=3)
    model.unembed.b_U[model.tokenizer.eos_token_id] += 7.0
    found = answers(model, facts)
    inside = sum(answer.text.rstrip().count("<|endoftext|>") for answer in found)
    assert inside > 4, "there was something to mistake"
    for fact, answer in zip(facts, found, strict=True):
        assert answer.text == slow_answer(model, fact)[0]


def longest_word(model, fact):
    """The longest word in the model's answer."""
    text = slow_answer(model, fact)[0]
    return max(re.findall("[A-Za-z]+", text), key=len)


def test_a_fact_is_known_if_its_object_is_in_the_answer_in_any_case(tiny, facts):
    word = longest_word(tiny, facts[0])
    right = [replace(facts[0], target_true=text, fact_id=i) for i, text in enumerate((word, word.upper(), word[1:]))]
    wrong = [replace(facts[0], target_true=f"{word}zq", fact_id=8), replace(facts[0], target_true="zqzq", fact_id=9)]
    assert known_facts(tiny, [wrong[0], *right, wrong[1]]) == right
    assert known_facts(tiny, [wrong[0], *right, wrong[1]], known=False) == [wrong[0], *right, wrong[1]]
    assert known_facts(tiny, wrong) == []


def test_case_is_folded_as_in_unicode(tiny, facts, monkeypatch):
    monkeypatch.setattr(type(tiny.tokenizer), "decode", lambda self, ids: "die STRASSE")
    assert [f.target_true for f in known_facts(tiny, [replace(facts[0], target_true="Straße")])] == ["Straße"]


def test_facts_below_a_probability_are_left_out(tiny, many):
    p = {fact.fact_id: slow_answer(tiny, fact)[1] for fact in many}
    middle = sorted(p.values())[len(p) // 2] * 0.999
    kept = known_facts(tiny, many, known=False, min_probability=middle)
    assert kept == [fact for fact in many if p[fact.fact_id] >= middle]
    assert 0 < len(kept) < len(many)
    assert known_facts(tiny, many, known=False, min_probability=1.0) == []
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"min_probability to be .*got {wrong}"):
            known_facts(tiny, many, min_probability=wrong)


def test_answers_do_not_depend_on_the_batch(tiny, many, tmp_path):
    whole = answers(tiny, many, cache=tmp_path / "a")
    single = answers(tiny, many, cache=tmp_path / "b", batch_size=1)
    for a, b in zip(whole, single, strict=True):
        assert (a.fact_id, a.text, a.known) == (b.fact_id, b.text, b.known)
        assert a.p_true == pytest.approx(b.p_true, rel=1e-5)


def test_a_prompt_near_the_end_of_the_context_gets_a_shorter_answer(tiny, facts, caplog):
    filler = "a river " * 6
    long = replace(facts[0], template=filler + "{} is in " + filler, fact_id=5)
    n = len(encode(tiny, long))
    assert tiny.cfg.n_ctx - 36 < n < tiny.cfg.n_ctx
    [answer] = answers(tiny, [long])
    assert answer.text == slow_answer(tiny, long)[0]
    assert f"1 of 1 answers are cut at the context of {tiny.cfg.n_ctx} tokens" in caplog.text


def test_a_fact_that_cannot_be_encoded_is_named(tiny, facts):
    long = replace(facts[0], template="{} is " + "q " * 80, fact_id=77)
    with pytest.raises(BadPrompt, match="fact 77"):
        answers(tiny, [facts[0], long])
    with pytest.raises(ValueError, match=r"n_tokens to be .*got 0"):
        answers(tiny, facts, n_tokens=0)


# The cache


def test_answers_are_kept_by_model_and_data(tiny, deep, many, cache, forwards):
    first = answers(tiny, many)
    assert len(list(cache.iterdir())) == 1
    n = len(forwards)
    assert n > 0
    assert answers(tiny, many) == first
    assert len(forwards) == n, "nothing was computed again"
    for model, data, length in ((deep, many, 36), (tiny, many[:-1], 36), (tiny, many[::-1], 36), (tiny, many, 35)):
        answers(model, data, n_tokens=length)
        assert len(forwards) > n
        n = len(forwards)
    assert len(list(cache.iterdir())) == 5


def test_another_object_is_other_data(tiny, facts, forwards):
    word = longest_word(tiny, facts[0])
    assert not answers(tiny, [replace(facts[0], target_true="zqzq")])[0].known
    assert answers(tiny, [replace(facts[0], target_true=word)])[0].known


def test_a_written_weight_is_another_model(make_model, facts, forwards):
    model = make_model(seed=5)
    before = answers(model, facts)
    with torch.no_grad():
        model.blocks[0].mlp.W_out.add_(0.5)
    after = answers(model, facts)
    assert [a.text for a in after] == [slow_answer(model, fact)[0] for fact in facts]
    assert [a.p_true for a in after] != [b.p_true for b in before]


def test_a_stopped_call_goes_on_from_its_cache(tiny, many, cache, forwards):
    whole = answers(tiny, many, cache=cache / "whole")
    n = len(forwards)

    def stop(event):
        if event.name == events.STEP:
            return
        assert (event.name, event.fields["task"], event.fields["total"]) == ("progress", "answers", len(many))
        assert event.fields["found"] == 0
        if event.fields["done"] >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), events.listening(stop):
        answers(tiny, many, batch_size=3)
    stopped_after = sum(forwards[n:])
    assert 3 <= stopped_after < len(many)
    [path] = (cache).glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"index": 0, "text": "cut sho')  # the machine went down while it wrote
    n, heard = len(forwards), []
    with events.listening(heard.append):
        found = answers(tiny, many)
    assert [a.text for a in found] == [a.text for a in whole]
    assert [a.p_true for a in found] == pytest.approx([a.p_true for a in whole], rel=1e-5)  # batches were smaller
    assert sum(forwards[n:]) == len(many) - stopped_after
    heard = [event for event in heard if event.name != events.STEP]
    assert heard[-1].fields["done"] == len(many)
    assert {event.fields["found"] for event in heard} == {stopped_after}
    n = len(forwards)
    assert answers(tiny, many) == found
    assert len(forwards) == n


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"no json\n", b'{"format": "another"}\n', b"[1]\n[2]\n"])
def test_a_damaged_cache_is_computed_again(tiny, facts, cache, content):
    whole = answers(tiny, facts)
    [path] = cache.iterdir()
    good = path.read_bytes()
    path.write_bytes(content)
    assert answers(tiny, facts) == whole
    assert sorted(path.read_bytes().splitlines()) == sorted(good.splitlines())
    rows = [json.loads(line) for line in good.splitlines()]
    assert rows[0]["model"] == loc_edit.fingerprint(tiny)


def test_a_cache_that_cannot_be_written_costs_no_result(tiny, facts, tmp_path, caplog):
    whole = answers(tiny, facts)
    (tmp_path / "file").write_text("no folder")
    assert answers(tiny, facts, cache=tmp_path / "file") == whole
    assert caplog.text.count("answers are not cached") == 1


def test_batches_are_halved_when_memory_runs_out(tiny, facts, monkeypatch, caplog):
    same = [
        replace(facts[0], target_true=text, fact_id=i) for i, text in enumerate(("Paris", "Rome", "Oslo", "a", "b"))
    ]
    whole = answers(tiny, same)
    real, sizes = known._answer, []

    def small_machine(model, facts, encoded, n_tokens):
        sizes.append(len(facts))
        if len(facts) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(model, facts, encoded, n_tokens)

    monkeypatch.setattr(known, "_answer", small_machine)
    found = answers(tiny, same, n_tokens=37)
    assert [a.text[: len(b.text)] for a, b in zip(found, whole, strict=True)] == [b.text for b in whole]
    assert sizes == [5, 2, 2, 1]
    assert "2 answers at a time" in caplog.text
    monkeypatch.setattr(known, "_answer", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError):
        answers(tiny, same, n_tokens=38)


# The built-in model: its windowed attention is another path through the cached keys


@pytest.mark.slow
def test_the_builtin_model_knows_its_facts():
    model = loc_edit.load_model("builtin", device="cpu")
    facts = loc_edit.load_facts("builtin")[::60]
    for fact, answer in zip(facts, answers(model, facts), strict=True):
        text, p = slow_answer(model, fact)
        assert answer.text == text
        assert answer.p_true == pytest.approx(p, rel=1e-4)
        assert answer.known == (fact.target_true in text)
    assert len(known_facts(model, facts)) > 0.8 * len(facts)
    invented = [replace(fact, subject=f"Qz{fact.subject[::-1].lower()}", fact_id=i) for i, fact in enumerate(facts)]
    assert len(known_facts(model, invented)) < len(known_facts(model, facts))


def test_a_fact_outside_any_data_set_can_be_filtered(tiny):
    fact = Fact(template="{} is in", subject="Rome", target_true="Italy")
    assert known_facts(tiny, [fact], known=False) == [fact]
    assert known_facts(tiny, []) == []
