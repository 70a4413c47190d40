"""Facts and the formats of their files: small records written here, and the real files if they are at hand."""

import dataclasses
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from loc_edit.facts.builtin import builtin_facts
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.facts.formats import FORMATS, detect_format, read_records
from loc_edit.facts.loading import load_facts, save_facts

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["It rained. Danielle Darrieux, a native", "Danielle Darrieux spoke the language"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is"],
}
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
KNOWN = {
    "known_id": 3,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica. It is the largest",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}


def zsre(subject, *answers):
    return {
        "subject": subject,
        "src": f"Who made {subject}, and why {subject}?",
        "rephrase": f"Who is the maker of {subject}?",
        "alt": "nobody",
        "answers": list(answers),
        "loc": "nq question: who sang the nq question: song",
        "loc_ans": "x",
    }


ZSRE = [zsre("Aqua", "Ann", "Anna"), zsre("Brio", "Bob"), zsre("Calx", "Ann"), zsre("Dune", "Dora", "ANN")]


def write(path, records, *, lines=False):
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data():
    if not DATA.is_dir():
        pytest.skip("no ../shared/data beside the project: the real files are not there to read")
    return DATA.resolve()


# One fact


def test_a_fact_needs_three_texts_and_is_frozen():
    fact = Fact(template="{} is located in", subject="The Louvre", target_true="Paris")
    assert fact.prompt == "The Louvre is located in"
    assert (fact.target_new, fact.relation, fact.paraphrases, fact.neighbors) == (None, "", (), ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        fact.subject = "The Prado"


def test_a_fact_without_an_id_gets_an_id_from_its_content():
    def made(**change):
        return Fact(**({"template": "{} is in", "subject": "Rome", "target_true": "Italy"} | change)).fact_id

    assert made() == made(paraphrases=("x",))
    assert 0 <= made() < 2**63
    assert len({made(), made(subject="Oslo"), made(target_true="Lazio"), made(template="{} lies in")}) == 4


def test_a_subject_with_braces_fills_its_place_and_no_other():
    fact = Fact(template="{} is in", subject="{} {0} {x}", target_true="Rome")
    assert fact.prompt == "{} {0} {x} is in"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"template": "Rome is in"}, "exactly one {}"),
        ({"template": "{} and {} are in"}, "exactly one {}"),
        ({"subject": " "}, "subject is empty"),
        ({"target_true": ""}, "target_true is empty"),
    ],
)
def test_a_fact_that_cannot_be_used_is_refused_by_its_field(change, words):
    sound = {"template": "{} is in", "subject": "Rome", "target_true": "Italy", "fact_id": 12}
    Fact(**sound)
    with pytest.raises(BadFact, match=r"^fact ") as caught:
        Fact(**(sound | change))
    assert str(change.get("fact_id", 12)) in str(caught.value)
    assert words in str(caught.value)


def test_a_field_of_the_wrong_type_is_refused_by_name():
    wrong = [
        {"subject": None},
        {"template": 3},
        {"target_true": ["Italy"]},
        {"target_new": 5},
        {"fact_id": "7"},
        {"paraphrases": "one text, no list"},
        {"neighbors": (1, 2)},
    ]
    # In a process of its own: here the annotations are checked first.
    code = f"""
from loc_edit import BadFact, Fact
sound = dict(template="{{}} is in", subject="Rome", target_true="Italy")
Fact(**sound)
for change in {wrong}:
    try:
        Fact(**sound | change)
    except BadFact as error:
        print(error)
    else:
        print(change, "was taken")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == len(wrong)
    for line, change in zip(lines, wrong, strict=True):
        [(name, value)] = change.items()
        assert f"expected {name} to be" in line
        assert repr(value) in line


# Formats, on small records


def test_counterfact():
    [fact], errors = read_records([COUNTERFACT], "counterfact")
    assert not errors
    assert fact == Fact(
        template="The mother tongue of {} is",
        subject="Danielle Darrieux",
        target_true="French",
        target_new="English",
        relation="P103",
        paraphrases=("It rained. Danielle Darrieux, a native", "Danielle Darrieux spoke the language"),
        neighbors=("The mother tongue of Léon Blum is",),
        fact_id=7,
        searched=False,
    )


def test_flat():
    [fact], _ = read_records([FLAT], "flat")
    assert (fact.template, fact.prompt) == ("What is the twin city of {}? It is", FLAT["prompt"])
    assert (fact.fact_id, fact.target_true, fact.target_new) == (4, "Beirut", "Manila")
    assert fact.paraphrases == ("People in Lyon's twin city speak the language of",)
    assert fact.neighbors == ("The twin city of Trieste is",)
    assert fact.searched


def test_known_takes_the_prompt_where_it_extends_the_template():
    [fact], _ = read_records([KNOWN], "known")
    assert fact.template == "{} is located in the continent of"
    assert (fact.fact_id, fact.target_true, fact.target_new, fact.relation) == (3, "Antarctica", None, "P30")
    assert fact.searched


def test_zsre_takes_the_first_occurrence_and_the_first_answer():
    facts, errors = read_records(ZSRE, "zsre")
    assert not errors
    assert facts[1].template == "Question: Who made {}, and why Brio? Answer:"
    assert facts[1].paraphrases == ("Question: Who is the maker of Brio? Answer:",)
    assert facts[1].neighbors == ("Question: who sang the nq question: song",)
    assert [f.target_true for f in facts] == ["Ann", "Bob", "Ann", "Dora"]
    assert [f.fact_id for f in facts] == [0, 1, 2, 3]
    assert all(f.searched for f in facts)


def test_zsre_false_targets_are_other_records_answers_in_any_case():
    for seed in range(50):
        for record, fact in zip(ZSRE, read_records(ZSRE, "zsre", seed=seed)[0], strict=True):
            own = {answer.casefold() for answer in record["answers"]}
            assert fact.target_new.casefold() not in own
            assert fact.target_new in {"Ann", "Anna", "Bob", "Dora", "ANN"}


def test_zsre_false_targets_depend_on_the_seed_alone():
    def drawn(records, **more):
        return {f.subject: f.target_new for f in read_records(records, "zsre", **more)[0]}

    records = [zsre(f"S{i}", f"A{i}") for i in range(40)]
    assert drawn(records) == drawn(records)
    assert drawn(records) != drawn(records, seed=1)
    first = drawn(records, limit=5)
    assert len(first) == 5
    assert first.items() <= drawn(records).items()
    shuffled = random.Random(0).sample(records, len(records))
    assert shuffled != records
    assert drawn(shuffled) == drawn(records)
    assert len(set(drawn(records).values())) > 10  # the draws of several facts differ


def test_zsre_records_left_out_change_no_draw_and_the_draw_is_not_biased():
    records = [zsre(f"S{i}", f"A{i % 7}", f"B{i}") for i in range(700)]
    drawn = Counter(f.target_new for f in read_records(records, "zsre")[0])
    per_letter = Counter()
    for answer, n in drawn.items():
        per_letter[answer[0]] += n
    assert set(per_letter) == {"A", "B"}
    assert per_letter["B"] > 650, "each different answer has the same chance: 7 of 707 begin with A"
    broken = [*records, zsre("S800", "A0") | {"loc": None}]
    facts, errors = read_records(broken, "zsre")
    assert len(errors) == 1
    assert facts == read_records(records, "zsre")[0]


def test_zsre_can_take_the_given_alternative(tmp_path, caplog):
    records = [ZSRE[0] | {"alt": " Zoe"}, ZSRE[1] | {"alt": "BOB"}, ZSRE[2]]
    path = write(tmp_path / "zsre.json", records)
    assert [f.target_new for f in load_facts(path, false_target="alt")] == ["Zoe", None, "nobody"]
    assert "record 1: alt 'BOB' is among its answers" in caplog.text
    drawn = [f.target_new for f in load_facts(path)]
    assert None not in drawn
    with pytest.raises(ValueError, match=r"'alt': only zsre .* flat"):
        load_facts(write(tmp_path / "flat.json", [FLAT]), false_target="alt")
    with pytest.raises(BadFact, match="record 0: field 'alt' is missing"):
        load_facts(write(tmp_path / "less.json", [without(ZSRE[0], "alt")]), false_target="alt")
    with pytest.raises(Exception, match="false_target"):
        load_facts(path, false_target="old")


def test_zsre_with_one_answer_has_no_false_target():
    facts, _ = read_records([zsre("Aqua", "Ann"), zsre("Brio", "ann")], "zsre")
    assert [f.target_new for f in facts] == [None, None]


@pytest.mark.parametrize(
    ("record", "name"),
    [(COUNTERFACT, "counterfact"), (FLAT, "flat"), (KNOWN, "known"), (ZSRE[0], "zsre")],
)
def test_a_format_is_known_by_its_fields(tmp_path, record, name):
    assert detect_format(record) == name
    found = load_facts(write(tmp_path / "one.json", [record]))
    assert found == load_facts(write(tmp_path / "one.jsonl", [record], lines=True), format=name)
    assert found == read_records([record], name)[0]


def test_every_format_has_a_test_of_its_detection():
    assert set(FORMATS) == {"own", "counterfact", "flat", "known", "zsre"}


@pytest.mark.parametrize("record", [{"x": 1}, [], "text", None])
def test_unknown_fields_are_refused_with_the_formats(record):
    with pytest.raises(ValueError, match="no known format") as caught:
        detect_format(record, "some.json")
    assert "some.json" in str(caught.value)
    assert "counterfact" in str(caught.value)


# Malformed records


REWRITE = COUNTERFACT["requested_rewrite"]


def sound_record(record, number):
    """A record like the given one, with an id or content of its own."""
    name = next((name for name in ("case_id", "known_id", "src") if name in record), "template")
    return record | {name: f"{record[name]}{number}"}


def without(record, field):
    return {k: v for k, v in record.items() if k != field}


@pytest.mark.parametrize(
    ("format", "record", "field"),
    [
        ("counterfact", without(COUNTERFACT, "requested_rewrite"), "requested_rewrite"),
        ("counterfact", COUNTERFACT | {"requested_rewrite": {"prompt": "{} is"}}, "subject"),
        ("counterfact", COUNTERFACT | {"paraphrase_prompts": "no list"}, "paraphrase_prompts"),
        ("counterfact", COUNTERFACT | {"requested_rewrite": REWRITE | {"target_true": "French"}}, "target_true"),
        ("counterfact", COUNTERFACT | {"requested_rewrite": REWRITE | {"target_new": {"str": 5}}}, "target_new.str"),
        ("counterfact", COUNTERFACT | {"requested_rewrite": REWRITE | {"prompt": "no braces"}}, "exactly one {}"),
        ("counterfact", COUNTERFACT | {"requested_rewrite": REWRITE | {"prompt": "{} or {}"}}, "exactly one {}"),
        ("counterfact", COUNTERFACT | {"requested_rewrite": REWRITE | {"subject": " "}}, "requested_rewrite.subject"),
        ("counterfact", COUNTERFACT | {"requested_rewrite": REWRITE | {"subject": "a\ud800"}}, "surrogate"),
        ("counterfact", COUNTERFACT | {"requested_rewrite": [1]}, "requested_rewrite"),
        ("counterfact", COUNTERFACT | {"case_id": 7.5}, "case_id"),
        ("counterfact", COUNTERFACT | {"case_id": True}, "case_id"),
        ("counterfact", COUNTERFACT | {"case_id": -3}, "case_id"),
        ("flat", FLAT | {"prompt": "In {} and Lyon it is"}, "holds {}"),
        ("flat", FLAT | {"rephrase_prompt": ["Lyon"]}, "rephrase_prompt"),
        ("flat", FLAT | {"case_id": None}, "case_id"),
        ("counterfact", COUNTERFACT | {"case_id": "seven"}, "seven"),
        ("flat", without(FLAT, "target_new"), "target_new"),
        ("flat", FLAT | {"subject": "Marseille"}, "Marseille"),
        ("flat", FLAT | {"subject": ""}, "subject"),
        ("flat", FLAT | {"prompt": None}, "prompt"),
        ("known", without(KNOWN, "attribute"), "attribute"),
        ("known", KNOWN | {"attribute": ""}, "attribute"),
        ("zsre", without(ZSRE[0], "loc"), "loc"),
        ("zsre", ZSRE[0] | {"answers": []}, "answers"),
        ("zsre", ZSRE[0] | {"answers": None}, "answers"),
        ("zsre", ZSRE[0] | {"answers": "Ann"}, "answers"),
        ("zsre", ZSRE[0] | {"subject": "Zebra"}, "Zebra"),
        ("own", {"template": "{} is", "subject": "Rome"}, "target_true"),
        ("own", {"template": "{} is", "subject": "Rome", "target_true": "Italy", "colour": 1}, "colour"),
        ("own", {"template": "{} is", "subject": None, "target_true": "Italy"}, "subject"),
        ("own", {"template": "{} is", "subject": "Rome", "target_true": "Italy", "target_new": ""}, "target_new"),
        ("own", {"template": "{} is", "subject": "Rome", "target_true": "Italy", "searched": "no"}, "searched"),
        ("own", "a text", "record"),
        ("own", ["a", "list"], "record"),
        ("counterfact", None, "record"),
    ],
)
def test_a_malformed_record_is_named_by_index_and_field(tmp_path, format, record, field):
    sound = {"counterfact": COUNTERFACT, "flat": FLAT, "known": KNOWN, "zsre": ZSRE[1]}.get(
        format, {"template": "{} is", "subject": "Oslo", "target_true": "Norway"}
    )
    sounds = [sound_record(sound, i) for i in range(3)]
    records = [*sounds[:2], record, sounds[2]]
    facts, [error] = read_records(records, format)
    assert len(facts) == 3
    assert (error.index, str(error)) == (2, f"record 2: {error.reason}")
    assert "record 2" in str(error)
    assert field in str(error)
    assert "\n" not in str(error)
    path = write(tmp_path / "facts.json", records)
    for forced in ("auto", format):
        with pytest.raises(BadFact, match="record 2") as caught:
            load_facts(path, format=forced)
        assert str(path) in str(caught.value)
        assert load_facts(path, format=forced, skip_invalid=True) == facts


def test_invalid_records_can_be_skipped_and_are_counted_and_listed(tmp_path, caplog):
    records = [{**FLAT, "case_id": i} for i in range(6)]
    records[1].pop("subject")
    records[4]["subject"] = "Marseille"
    path, listed = write(tmp_path / "facts.json", records), tmp_path / "skipped.jsonl"
    found = load_facts(path, skip_invalid=True, skipped=listed)
    assert [fact.fact_id for fact in found] == [0, 2, 3, 5]
    assert "2 of 6 records skipped, the first: record 1" in caplog.text
    assert str(listed) in caplog.text
    left_out = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [one["record"] for one in left_out] == [1, 4]
    assert "'subject' is missing" in left_out[0]["reason"]
    assert "Marseille" in left_out[1]["reason"]
    load_facts(write(tmp_path / "good.json", [FLAT]), skip_invalid=True, skipped=listed)
    assert listed.read_text() == "", "nothing was skipped: an old list would mislead"


def test_an_error_counts_the_others(tmp_path):
    path = write(tmp_path / "facts.json", [FLAT, FLAT | {"subject": ""}, FLAT | {"subject": 1}])
    with pytest.raises(BadFact, match=r"record 1: field 'subject' is empty \(and 1 more\)"):
        load_facts(path)


def test_two_records_with_one_id_are_named(tmp_path):
    path = write(tmp_path / "facts.json", [FLAT, FLAT | {"case_id": 5}, FLAT | {"subject": "twin"}])
    with pytest.raises(BadFact, match="record 2: its id 4 already belongs to record 0"):
        load_facts(path)
    assert [f.subject for f in load_facts(path, skip_invalid=True)] == ["Lyon", "Lyon"]


def test_a_line_that_is_not_json_is_a_malformed_record(tmp_path):
    lines = [json.dumps(FLAT | {"case_id": i}) for i in range(4)]
    lines[2] = lines[2][:30]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n\n".join(lines) + "\r\n")
    with pytest.raises(BadFact, match="record 2: not JSON"):
        load_facts(path)
    assert [f.fact_id for f in load_facts(path, skip_invalid=True)] == [0, 1, 3]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path, limit):
    with pytest.raises(ValueError, match=f"limit to be .*got {limit}"):
        load_facts(write(tmp_path / "facts.json", [FLAT]), limit=limit)
    with pytest.raises(ValueError, match=f"limit to be .*got {limit}"):
        load_facts("builtin", limit=limit)


def test_space_around_an_object_is_dropped():
    fact = Fact(template="{} is in", subject="Rome", target_true=" Italy", target_new="Spain ")
    assert (fact.target_true, fact.target_new) == ("Italy", "Spain")
    assert fact == Fact(template="{} is in", subject="Rome", target_true="Italy", target_new="Spain")


def test_a_malformed_first_record_does_not_hide_the_format(tmp_path):
    path = write(tmp_path / "facts.json", [without(FLAT, "subject"), FLAT])
    assert [fact.fact_id for fact in load_facts(path, skip_invalid=True)] == [4]
    with pytest.raises(BadFact, match=r"record 0: field 'subject' is missing"):
        load_facts(path)


def test_no_usable_fact_is_refused(tmp_path):
    path = write(tmp_path / "facts.json", [FLAT | {"subject": "Marseille"}])
    with pytest.raises(BadFact, match="no usable fact among 1 records") as caught:
        load_facts(path, skip_invalid=True)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "", "\n \n"])
def test_an_empty_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(BadFact, match="no facts") as caught:
        load_facts(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"not json", b'[{"a": 1}', b'[{"a": 1}] x', b'[{"a": 1} {', b"\xff\xfe\x00", b"[" * 100_000]
)
def test_a_file_that_is_not_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="JSON") as caught:
        load_facts(path)
    assert str(path) in str(caught.value)


def test_an_unknown_path_or_format_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_facts(tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError):
        load_facts(tmp_path)
    path = write(tmp_path / "facts.json", [FLAT])
    with pytest.raises(ValueError, match=r"counterfact.*'csv'"):
        load_facts(path, format="csv")


# Writing and reading back


def test_facts_survive_a_round_trip(tmp_path, facts):
    odd = Fact(
        template="In \u2028 the “old” north,\x85 {} is \t\n\\",
        subject='Łódź "\u2029" {0} 東京',
        target_true="Zürich\x0b",
        paraphrases=("a\nb", "c\rd"),
    )
    own = [*facts, odd, *builtin_facts()[5:9], *read_records([FLAT], "flat")[0]]
    save_facts(own, tmp_path / "own.jsonl")
    assert load_facts(tmp_path / "own.jsonl") == own
    assert load_facts(tmp_path / "own.jsonl", limit=2) == own[:2]


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([FLAT]), encoding="utf-8-sig")
    assert load_facts(path)[0].subject == "Lyon"


def test_the_builtin_facts_are_loaded_by_name():
    assert load_facts() == load_facts("builtin") == builtin_facts()
    assert load_facts(limit=3) == builtin_facts()[:3]


# The real files


def test_counterfact_sample(data):
    found = load_facts(data / "counterfact_sample_5.json")
    assert [f.fact_id for f in found] == [0, 1, 2, 3, 4]
    assert (found[0].prompt, found[0].relation) == ("The mother tongue of Danielle Darrieux is", "P103")
    assert (found[0].target_true, found[0].target_new) == ("French", "English")
    assert all((len(f.paraphrases), len(f.neighbors)) == (2, 10) for f in found)


def test_flat_counterfact(data):
    path = data / "counterfact_flat_10000.json"
    found = load_facts(path)
    assert len(found) == 10_000
    assert found == load_facts(path, format="flat")
    assert found[2].template == "What is the twin city of {}? It is"
    assert all(f.prompt == r["prompt"] for f, r in zip(found, json.loads(path.read_text()), strict=True))
    assert len({f.fact_id for f in found}) == 10_000


def test_zsre_file(data):
    path = data / "zsre_mend_300.json"
    records, found = json.loads(path.read_text()), load_facts(path)
    assert len(found) == 300
    assert found[0].prompt == "Question: What is the product made by UniFirst? Answer:"
    assert found[0].neighbors == ("Question: john goodman's character in the big lebowski",)
    answers = {answer for record in records for answer in record["answers"]}
    for record, fact in zip(records, found, strict=True):
        assert fact.target_true == record["answers"][0]
        assert fact.target_new in answers
        assert fact.target_new not in record["answers"]
    assert load_facts(path, limit=20) == found[:20]
    assert load_facts(path, seed=1) != found
    given = [f.target_new for f in load_facts(path, false_target="alt")]
    assert given.count(None) == 9
    assert all(new in (None, record["alt"].strip()) for new, record in zip(given, records, strict=True))


def test_known_1000(data):
    path = data / "known_1000.json"
    records, found = json.loads(path.read_text()), load_facts(path)
    assert len(found) == 1209
    assert all(f.prompt == r["prompt"] for f, r in zip(found, records, strict=True))
    extended = Counter(f.template != r["template"] for f, r in zip(found, records, strict=True))
    assert extended[True] >= 478 - 5
    assert found[0].template == "{} is located in the continent of"
    assert all(f.target_new is None for f in found)
