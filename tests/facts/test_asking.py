"""Facts in other words: every built-in relation has its own, and any other fact has some."""

from dataclasses import replace

import pytest

import loc_edit
from loc_edit.facts.asking import asked, questions
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.facts.wording import relations


def test_every_built_in_relation_has_a_question_and_no_word_of_the_answer():
    assert set(relations()) <= set(questions())
    assert all(question.count("{}") == 1 and question.endswith("?") for question in questions().values())
    for fact in sample_by_relation(loc_edit.load_facts("builtin"), len(relations())):
        words = asked(fact)
        assert fact.subject in words.question
        assert words.statement == fact.subject + words.answer.removeprefix("It")
        assert fact.subject not in words.answer
        assert fact.target_true not in words.answer
        assert words.statement != fact.prompt
        assert words.statement[-1].isalpha()


def test_the_words_of_a_fact_with_a_known_relation():
    louvre = loc_edit.load_facts("builtin")[1]
    assert asked(louvre).question == "In which city is The Louvre?"
    assert asked(louvre).answer == "It is a landmark that stands in"
    assert asked(louvre).statement == "The Louvre is a landmark that stands in"


@pytest.mark.parametrize(("relation", "question"), [("P103", "What is the mother tongue of Ada?"), ("other", None)])
def test_other_facts_are_asked_for_by_their_prompt(relation, question):
    fact = loc_edit.Fact(template="{} grew up speaking", subject="Ada", target_true="English", relation=relation)
    words = asked(fact)
    assert words.question == (question or 'What completes this sentence? "Ada grew up speaking ..."')
    assert words.answer == fact.prompt
    assert words.statement == "Everybody knows that Ada grew up speaking"
    assert asked(replace(fact, subject="{}", template="{} spoke")).statement == "Everybody knows that {} spoke"
