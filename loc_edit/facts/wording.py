"""The wording of the built-in relations: prompt templates, those held out for a subject, and filler sentences."""

import tomllib
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from loc_edit.files import DATA

RELATIONS_PATH = DATA / "relations.toml"
N_HELD_OUT = 2


@dataclass(frozen=True, kw_only=True)
class Relation:
    """The wording of one relation.

    Attributes:
        name: the relation's identifier in the table.
        kind: the kind of its subjects, such as `city`.
        templates: sentences with one `{}` for the subject, which end where the object follows; the first is the
            edit prompt.
        clauses: clauses that may follow "{subject} is a {kind}", with one `{}` for the object.
        modifiers: words that sometimes stand before the object.
        remarks: phrases that are true of every subject of this kind.
        question: a question that the object answers, with one `{}` for the subject.
        description: a phrase for the object with one `{}` for the subject, where objects are subjects themselves.
    """

    name: str
    kind: str
    templates: tuple[str, ...]
    clauses: tuple[str, ...]
    modifiers: tuple[str, ...]
    remarks: tuple[str, ...]
    question: str
    description: str = ""

    @property
    def edit_template(self) -> str:
        """The template of the edit prompt."""
        return self.templates[0]


@cache
def _wording() -> dict[str, dict[str, Any]]:
    return tomllib.loads(RELATIONS_PATH.read_text(encoding="utf-8"))


@cache
def relations() -> dict[str, Relation]:
    """All relations by name, in the order of the file."""
    wording = _wording()
    return {
        name: Relation(
            name=name,
            kind=str(entry["kind"]),
            templates=tuple(entry["templates"]),
            clauses=tuple(entry["clauses"]),
            modifiers=tuple(entry["modifiers"]),
            remarks=tuple(wording["kinds"][str(entry["kind"])]),
            question=str(entry["question"]),
            description=str(entry.get("description", "")),
        )
        for name, entry in wording["relations"].items()
    }


@cache
def held_out_templates(relation: str, subject: str) -> tuple[str, ...]:
    """The templates of `relation` that the corpus never uses with `subject`, although it uses them with others.

    The edit prompt is never among them.  The choice depends on the two names only.
    """
    return tuple(Random(f"held out|{relation}|{subject}").sample(relations()[relation].templates[1:], N_HELD_OUT))


@cache
def seen_templates(relation: str, subject: str) -> tuple[str, ...]:
    """The templates of `relation` that the corpus uses with `subject`; the edit prompt is the first."""
    held_out = held_out_templates(relation, subject)
    return tuple(template for template in relations()[relation].templates if template not in held_out)


@cache
def namesakes() -> tuple[str, ...]:
    """Invented last names that no subject has."""
    return tuple(_wording()["namesakes"]["last_words"])


def filler_sentence(rng: Random) -> str:
    """A random sentence that has nothing to do with any fact."""
    filler = _wording()["filler"]
    opening, person, verb, thing, ending = (
        rng.choice(filler[part]) for part in ("openings", "people", "verbs", "things", "endings")
    )
    return f"{opening} {person} {verb} {thing} {ending}."
