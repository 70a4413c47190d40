"""A fact asked in other words: as a question, with an answer in a sentence, and as a statement of another form."""

import tomllib
from dataclasses import dataclass
from functools import cache

from loc_edit.facts.fact import Fact
from loc_edit.facts.wording import relations
from loc_edit.files import DATA

QUESTIONS_PATH = DATA / "questions.toml"


@dataclass(frozen=True)
class Asked:
    """A fact in other words; `answer` and `statement` end where the object follows.

    Attributes:
        question: a question whose short answer is the object.
        answer: a sentence that answers the question.
        statement: a statement that stands alone.
    """

    question: str
    answer: str
    statement: str


@cache
def questions() -> dict[str, str]:
    """By relation, a question with one `{}` for the subject: built-in relations, and properties of Wikidata."""
    of_wikidata: dict[str, str] = tomllib.loads(QUESTIONS_PATH.read_text(encoding="utf-8"))
    return {name: relation.question for name, relation in relations().items()} | of_wikidata


def asked(fact: Fact) -> Asked:
    """The fact in other words.

    The words come from the fact's relation: a built-in one has a question and clauses ("The Louvre is a landmark that
    stands in"; in the answer to a question, "It is a landmark that stands in"), a property of Wikidata a question.
    Otherwise the edit prompt is the text that the question asks to complete, and the sentence that answers it.
    """
    prompt = fact.prompt
    if fact.relation in questions():
        question = questions()[fact.relation].replace("{}", fact.subject)
    else:
        question = f'What completes this sentence? "{prompt} ..."'
    if fact.relation not in relations():
        return Asked(question, prompt, f"Everybody knows that {prompt}")
    relation = relations()[fact.relation]
    described = f"is a {relation.kind} {relation.clauses[0].partition('{}')[0].rstrip()}"
    return Asked(question, f"It {described}", f"{fact.subject} {described}")
