"""The facts that a study edits: a subject, its true and its false object, and the prompts that test them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, cast

from loc_edit.arguments import Id, fits, words
from loc_edit.files import short_hash

TEXT_LISTS = ("paraphrases", "neighbors")


class BadFact(ValueError):
    """A fact, or a record that should become one, that cannot be used; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact (subject, relation, object) with the prompts that test it.

    Attributes:
        template: the edit prompt, with one `{}` where the subject goes.
        subject: the subject's text.
        target_true: the true object; space around it is dropped, as a space joins it to its prompt.
        target_new: a false object of the same kind, likewise; `None` where the data set has none.
        relation: an identifier of the relation, such as `P103` or `capital`.
        paraphrases: prompts that ask for the same object in other words, with the subject filled in.
        neighbors: prompts about other subjects whose true object is also `target_true`.
        fact_id: an integer of at least 0 and below 2^63 that names the fact in its data set; derived from the content
            if not given.
        searched: whether the data set does not mark the subject's place in the prompt, so that the subject's first
            occurrence was taken.
    """

    template: str
    subject: str
    target_true: str
    target_new: str | None = None
    relation: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[str, ...] = ()
    fact_id: int = cast(int, None)
    searched: bool = False

    def __post_init__(self) -> None:
        check_types(vars(self))
        for name in ("target_true", "target_new"):
            if (target := getattr(self, name)) is not None:
                object.__setattr__(self, name, target.strip())
        for name in TEXT_LISTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.fact_id is None:
            content = "\x1f".join((self.template, self.subject, self.target_true)).encode()
            object.__setattr__(self, "fact_id", int.from_bytes(sha256(content).digest()[:6], "big"))
        if self.template.count("{}") != 1:
            raise BadFact(
                f"fact {self.fact_id}: expected exactly one {{}} for the subject in template {self.template!r}"
            )
        for name in ("subject", "target_true", "target_new"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise BadFact(f"fact {self.fact_id}: {name} is empty")

    @property
    def prompt(self) -> str:
        """The edit prompt's text: the template with the subject filled in."""
        return self.template.replace("{}", self.subject)

    @property
    def content(self) -> str:
        """A hash of all fields, 16 hexadecimal digits: two data sets may use one id for different facts."""
        return short_hash(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")))


def half_character(text: str) -> bool:
    """Whether a text has a lone surrogate, which no tokenizer and no file takes."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)


def check_types(values: Mapping[str, Any]) -> None:
    """Refuse fields of the wrong type.

    Text in place of a list of texts would otherwise be taken apart letter by letter.

    Raises:
        BadFact: names the field, its value and the expected type.
    """
    fact = f"fact {values.get('fact_id')!r}"
    for name, value in values.items():
        is_list = isinstance(value, list | tuple)
        texts = [text for text in (value if is_list else [value]) if isinstance(text, str)]
        if name in TEXT_LISTS:
            right, expected = is_list and len(texts) == len(value), "a list of texts"
        elif name == "fact_id":
            right, expected = value is None or (type(value) is int and fits(value, Id)), words(Id)
        elif name == "searched":
            right, expected = type(value) is bool, "true or false"
        else:
            right, expected = isinstance(value, str) or (name == "target_new" and value is None), "a text"
        if not right:
            raise BadFact(f"{fact}: expected {name} to be {expected}, got {value!r}")
        if any(map(half_character, texts)):
            raise BadFact(f"{fact}: {name} contains half a character (a lone surrogate): {value!r}")
