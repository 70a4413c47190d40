"""The command about the facts themselves: list, choose, check, save."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from loc_edit.cli.show import err, out, progress

if TYPE_CHECKING:
    from loc_edit.facts.fact import Fact
    from loc_edit.facts.loading import FactFile

SHOWN = 10


def facts(
    data: str = "builtin",
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None,
    relation: str | None = None,
    known: bool = False,
    min_probability: float = 0.0,
    model: str | None = None,
    validate: bool = False,
    save: Path | None = None,
    format: str = "auto",
    false_target: Literal["drawn", "alt"] = "drawn",
    skip_invalid: bool = False,
    skipped: Path | None = None,
    seed: int = 0,
) -> None:
    """List facts, choose those that a model knows, check a file, write the chosen ones as JSON lines.

    Args:
        data: the built-in facts, a public data set (counterfact, multi_counterfact, zsre, known_1000), or a file.
        n: so many, spread evenly over the relations; all if None.
        relation: those of one relation only.
        known: those only whose true object is in the model's greedy answer of 36 tokens.
        min_probability: those only whose true object has at least this probability.
        model: the model of these two, the built-in one if None; with --validate, whose tokenizer to check with.
        validate: read every record, count, name the malformed ones; with --model, find every subject's tokens.
        save: a file for the chosen facts, instead of the list.
        format: the file's format: own, counterfact, flat, known, zsre; auto tells by the fields.
        false_target: zsRE's false object: drawn from the other answers, or the record's alt.
        skip_invalid: leave malformed records, and facts that the model's tokenizer cannot take, out.
        skipped: a file for the list of malformed records.
        seed: of drawn false objects.
    """
    from loc_edit.facts.loading import load_facts, read_file
    from loc_edit.facts.sampling import sample_by_relation

    if n is not None and n < 1:
        raise ValueError(f"--n {n}: at least 1 is wanted")
    if save is not None and Path(data).is_file() and save.exists() and save.samefile(data):
        raise ValueError(f"--save {save}: that is the file that is read")
    if validate:
        if data == "builtin":
            raise ValueError("--validate: give the file or public data set to check with --data")
        _validate(read_file(data, format=format, seed=seed, false_target=false_target), model, skipped)
        return
    found = load_facts(
        data, format=format, seed=seed, skip_invalid=skip_invalid, skipped=skipped, false_target=false_target
    )
    all_found = len(found)
    found = [fact for fact in found if relation in (None, fact.relation)]
    if not found:
        raise ValueError(f"{data}: no fact of relation {relation!r}")
    if known or min_probability:
        found = _known(found, model or "builtin", known, min_probability, skip_invalid)
        out.print(f"{len(found):,} of {all_found:,} facts are known to {escape(model or 'builtin')}")
    found = sample_by_relation(found, n)
    if save:
        _save(found, save)
        return
    table = Table()
    for name in ("id", "relation", "prompt", "true", "false"):
        table.add_column(name)
    for fact in found:
        cells = (str(fact.fact_id), fact.relation, fact.prompt, fact.target_true, fact.target_new or "")
        table.add_row(*map(escape, cells))
    out.print(table)


def _save(found: "list[Fact]", path: Path) -> None:
    from loc_edit.facts.loading import save_facts

    if not found:
        raise ValueError(f"--save {path}: no fact is left to be saved")
    save_facts(found, path)
    out.print(f"saved {len(found):,} facts in {escape(str(path))}")


def _known(found: "list[Fact]", model: str, known: bool, min_probability: float, skip_invalid: bool) -> "list[Fact]":
    """The facts that the model knows."""
    from loc_edit.models.loading import load_model
    from loc_edit.prompts.encoding import encode_all
    from loc_edit.prompts.recall import known_facts

    net = load_model(model)
    if skip_invalid:
        encoded = encode_all(net, found)
        refused = [str(one) for one in encoded if isinstance(one, Exception)]
        found = [fact for fact, one in zip(found, encoded, strict=True) if not isinstance(one, Exception)]
        _list("facts that the model cannot take are left out", refused)
    with progress() as advance:
        return known_facts(net, found, known=known, min_probability=min_probability, progress=advance)


def _validate(file: "FactFile", model: str | None, skipped: Path | None) -> None:
    """Print what is in a file of facts; refuse it if a record or a fact of it cannot be used."""
    from loc_edit.facts.fact import BadFact
    from loc_edit.facts.loading import save_skipped

    table = Table(title=f"{escape(str(file.path))}, format {file.format}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for words, count in file.counts().items():
        table.add_row(words, f"{count:,}")
    refused: list[str] = []
    if model is not None:
        refused = _refused(file.facts, model)
        table.add_row(f"usable with {escape(model)}", f"{len(file.facts) - len(refused):,}")
    out.print(table)
    _list("malformed", [str(error) for error in file.errors])
    _list(f"not usable with {model}", refused)
    if skipped is not None:
        save_skipped(file.errors, skipped)
        out.print(f"saved the list of {len(file.errors):,} malformed records in {escape(str(skipped))}")
    if file.errors or refused:
        n = len(file.facts) + len(file.errors)
        raise BadFact(f"{file.path}: {len(file.errors) + len(refused):,} of {n:,} records cannot be used")


def _refused(facts: "list[Fact]", model: str) -> list[str]:
    """Why the model's tokenizer or context cannot take some of the facts."""
    from loc_edit.models.loading import load_model
    from loc_edit.prompts.encoding import encode_all

    return [str(one) for one in encode_all(load_model(model), facts) if isinstance(one, Exception)]


def _list(title: str, lines: list[str]) -> None:
    """The first few of some complaints."""
    if lines:
        err.print(f"{escape(title)}: {len(lines):,}")
        for line in lines[:SHOWN]:
            err.print(f"  {escape(line)}", soft_wrap=True)
        if len(lines) > SHOWN:
            err.print(f"  and {len(lines) - SHOWN:,} more")
