"""What a fact is."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


class BadFact(ValueError):
    """A fact, or a record that should become one, that cannot be used; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact (subject, relation, object) with the prompts that test it.

    Attributes:
        template: the edit prompt, with one `{}` where the subject goes.
        subject: the subject's text.
        target_true: the right object; space around it is dropped, as prompts are joined to it by one.
        target_new: a false object of the same kind, likewise; `None` where the data set has none.
        relation: an identifier of the relation, such as `P103` or `capital`.
        paraphrases: prompts that ask for the same object in other words, subject filled in.
        neighbors: prompts about other subjects whose right object is also `target_true`.
        fact_id: an integer that names the fact in its data set; made from the content if not given.
        searched: whether the subject's place is its first occurrence in a finished prompt, as the format
            marks none.
    """

    template: str
    subject: str
    target_true: str
    target_new: str | None = None
    relation: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[str, ...] = ()
    fact_id: int = -1
    searched: bool = False

    def __post_init__(self) -> None:
        check_types(vars(self))
        for name in ("target_true", "target_new"):
            if (target := getattr(self, name)) is not None:
                object.__setattr__(self, name, target.strip())
        if self.fact_id < 0:
            content = "\x1f".join((self.template, self.subject, self.target_true)).encode()
            object.__setattr__(self, "fact_id", int.from_bytes(hashlib.sha256(content).digest()[:6], "big"))
        for name in ("paraphrases", "neighbors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.template.count("{}") != 1:
            raise BadFact(f"fact {self.fact_id}: template {self.template!r} needs exactly one {{}} for the subject")
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
        """Names all that the fact says, its prompts included: 16 hexadecimal digits.  An id may be used twice."""
        whole = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


def check_types(values: Mapping[str, Any]) -> None:
    """Refuse by name what is no text, or no list of texts: a text in a list's place would be taken letter by letter."""
    about = f"fact {values.get('fact_id', -1)!r}"
    texts = []
    for name in ("template", "subject", "target_true", "target_new", "relation"):
        value = values.get(name, "")
        if not isinstance(value, str) and not (name == "target_new" and value is None):
            raise BadFact(f"{about}: {name} is no text: {value!r}")
        texts.append((name, value or ""))
    for name in ("paraphrases", "neighbors"):
        value = values.get(name, ())
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise BadFact(f"{about}: {name} is no list of texts: {value!r}")
        texts += [(name, text) for text in value]
    for name, text in texts:
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise BadFact(f"{about}: {name} holds half a character (a lone surrogate): {text!r}")
    for name, kind, words in (("fact_id", int, "integer"), ("searched", bool, "truth value")):
        if name in values and type(values[name]) is not kind:
            raise BadFact(f"{about}: {name} is no {words}: {values[name]!r}")
