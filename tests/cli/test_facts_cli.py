"""`loc-edit facts`: list, choose, check, save."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from commands import call, files, message

import loc_edit
from loc_edit.facts.loading import load_facts, save_facts

FLAT = {
    "case_id": 4,
    "prompt": "What is the twin city of Lyon? It is",
    "target_new": "Manila",
    "subject": "Lyon",
    "ground_truth": "Beirut",
    "rephrase_prompt": "People in Lyon's twin city speak the language of",
    "locality_prompt": "The twin city of Trieste is",
    "locality_ground_truth": "Beirut",
}
"""A record of flat CounterFact."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LOC_EDIT_CACHE", str(folder))
    return folder


@pytest.fixture
def some(here):
    """Eight built-in facts, and one that the built-in model cannot know."""
    facts = load_facts("builtin")[::105]
    unknown = replace(facts[0], subject="Qzyx", target_true="Qzqzqz", fact_id=9999)
    save_facts([*facts, unknown], here / "some.jsonl")
    save_facts([*facts[:2], unknown], here / "few.jsonl")
    return facts


@pytest.fixture
def mixed(here):
    """Five records, two of them malformed."""
    records = [FLAT | {"case_id": i} for i in range(5)]
    records[1]["subject"] = "Marseille"
    del records[3]["target_new"]
    (here / "mixed.json").write_text(json.dumps(records))
    return here / "mixed.json"


def test_facts_are_spread_over_the_relations_and_saved(here, some):
    assert call("facts", "--data", "some.jsonl", "-n", 4, "--save", "four.jsonl").out == "saved 4 facts in four.jsonl\n"
    four = load_facts("four.jsonl")
    assert len({fact.relation for fact in four}) == 4
    assert set(four) <= set(some)
    listed = call("facts", "--data", "four.jsonl").out
    assert all(fact.prompt in listed for fact in four)
    relation = four[0].relation
    assert call("facts", "--data", "some.jsonl", "--relation", relation, "--save", "one.jsonl").status == 0
    assert {fact.relation for fact in load_facts("one.jsonl")} == {relation}


def test_known_facts_are_chosen_with_the_builtin_model(here, some, cache):
    result = call("facts", "--data", "few.jsonl", "--known", "--save", "known.jsonl")
    assert result.status == 0, result.err
    known = load_facts("known.jsonl")
    assert 9999 not in {fact.fact_id for fact in known}
    assert 0 < len(known) <= 2
    assert f"{len(known)} of 3 facts are known to builtin" in result.out
    assert [path.parent.name for path in cache.rglob("*.jsonl")] == ["answers"]
    model = loc_edit.load_model("builtin")
    assert known == loc_edit.known_facts(model, load_facts("few.jsonl"))
    sure = call("facts", "--data", "few.jsonl", "--min-probability", 0.9, "--save", "sure.jsonl")
    assert sure.status == 0, sure.err
    wanted = loc_edit.known_facts(model, load_facts("few.jsonl"), known=False, min_probability=0.9)
    assert load_facts("sure.jsonl") == wanted
    assert message(call("facts", "--data", "few.jsonl", "--min-probability", 2)).endswith(
        "min_probability to be a number of at least 0 and at most 1, got 2.0"
    )


def test_a_sound_file_is_counted(some):
    result = call("facts", "--validate", "--data", "some.jsonl", "--model", "builtin")
    assert result.status == 0, result.err
    numbers = {}
    for line in result.out.splitlines():
        words, _, number = line.strip("│ ").rpartition("│")
        numbers[words.strip()] = number.strip()
    assert numbers["records"] == numbers["facts"] == numbers["usable with builtin"] == str(len(some) + 1)
    assert numbers["malformed"] == numbers["prompt ends in a space"] == "0"
    assert numbers["relations"] == str(len({fact.relation for fact in some}))
    assert "format own" in result.out


def test_a_file_with_malformed_records_is_refused_with_their_list(here, mixed):
    result = call("facts", "--validate", "--data", mixed, "--skipped", "bad.jsonl")
    assert message(result).endswith("mixed.json: 2 of 5 records cannot be used")
    assert "record 1: subject 'Marseille' is not in prompt" in result.err
    assert "record 3: field 'target_new' is missing" in result.err
    assert [json.loads(line)["record"] for line in (here / "bad.jsonl").read_text().splitlines()] == [1, 3]


def test_malformed_records_are_skipped_when_asked(here, mixed):
    line = message(call("facts", "--data", mixed))
    assert "record 1: subject 'Marseille'" in line
    assert "(and 1 more)" in line
    result = call("facts", "--data", mixed, "--skip-invalid", "--skipped", "bad.jsonl", "--save", "good.jsonl")
    assert result.status == 0, result.err
    assert [fact.fact_id for fact in load_facts("good.jsonl")] == [0, 2, 4]
    assert len((here / "bad.jsonl").read_text().splitlines()) == 2


def test_facts_that_the_model_cannot_take_are_named_and_can_be_skipped(here, some):
    long = replace(some[0], template="x " * 200 + "{} is", fact_id=7)
    save_facts([*some[:2], long], here / "long.jsonl")
    result = call("facts", "--validate", "--data", "long.jsonl", "--model", "builtin")
    assert "1 of 3 records cannot be used" in message(result)
    assert "fact 7: prompt of" in result.err
    assert "fact 7: prompt of" in message(call("facts", "--data", "long.jsonl", "--known"))
    result = call("facts", "--data", "long.jsonl", "--known", "--skip-invalid", "--save", "known.jsonl")
    assert result.status == 0, result.err
    assert "left out: 1" in result.err
    assert load_facts("known.jsonl")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--validate",), "expected --data with the file"),
        (("--data", "mixed.json", "--save", "mixed.json"), "expected another file than the one that is read"),
        (("--data", "mixed.json", "--format", "zsre"), "record 0"),
        (("--data", "mixed.json", "--format", "csv"), "got 'csv'"),
        (("--data", "mixed.json", "--false-target", "alt"), "only zsre"),
        (("--data", "mixed.json", "--skip-invalid", "--known", "--model", "nonesuch"), "model 'nonesuch'"),
        (("--data", "mixed.json", "--skip-invalid", "--save", "no/such/folder/x.jsonl"), "no/such/folder"),
        (("-n", "0"), "--n 0: expected at least 1"),
        (("--data", "absent.json", "--validate"), "absent.json"),
    ],
)
def test_a_mistake_takes_one_line_and_writes_nothing(here, mixed, args, named):
    before = files(here)
    assert named in message(call("facts", *args))
    assert files(here) == before


def test_nothing_left_is_not_saved(here, some):
    line = message(call("facts", "--data", "few.jsonl", "--min-probability", "1.0", "--save", "none.jsonl"))
    assert "no fact is left" in line
    assert not (here / "none.jsonl").exists()


def test_a_list_into_a_closed_pipe_is_no_crash(here, some):
    command = f"{sys.executable} -m loc_edit facts | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=here, check=False)
    assert "Traceback" not in result.stderr
