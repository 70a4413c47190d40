"""The command about facts: list them, choose among them, check a file, save them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.markup import escape
from rich.table import Table

import loc_edit
from loc_edit.cli.models import fetch
from loc_edit.cli.options import AcceptTerms, like_config
from loc_edit.cli.show import Json, err, numbers, out, print_json, progress
from loc_edit.experiment.config import FactCount

if TYPE_CHECKING:
    from loc_edit.facts.loading import FactFile
    from loc_edit.models.model import Model

    Facts = list[loc_edit.Fact]

SHOWN = 10
"""How many malformed records are printed."""


def facts(
    data: Annotated[str, like_config("data")] = "builtin",
    n: Annotated[FactCount, tyro.conf.arg(aliases=["-n"])] = None,
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
    accept_terms: AcceptTerms = False,
    as_json: Json = False,
) -> None:
    """List facts, choose those that a model knows, check a file.

    Examples:
        loc-edit facts -n 10
        loc-edit facts --data counterfact.json --validate
        loc-edit facts --known --model smollm2 --save known.jsonl

    Args:
        n: How many facts, spread evenly over the relations, or all.
        relation: Only facts of this relation.
        known: Only facts whose true object is in the model's greedy answer of 36 tokens.
        min_probability: Only facts whose true object has at least this probability.
        model: The model of --known and --min-probability, the built-in one if None; with --validate, the model
            whose tokenizer has to find every subject.
        validate: Read every record, count them and name the malformed ones.
        save: A file for the chosen facts, which are then not listed.
        format: The file's format: own, counterfact, flat, known or zsre; auto recognizes it by the fields.
        false_target: The false object of a zsRE record: drawn from the other records' answers, or its field alt.
        skip_invalid: Leave out malformed records, and facts that the model's tokenizer cannot take.
        skipped: A file for the list of malformed records.
        seed: The seed for drawing false objects.
    """
    from loc_edit.facts.loading import read_file

    if n is not None and n < 1:
        raise ValueError(f"--n {n}: expected at least 1 fact")
    if save is not None and Path(data).is_file() and save.exists() and save.samefile(data):
        raise ValueError(f"--save {save}: expected another file than the one that is read")
    if model is not None:
        fetch(model, accept_terms)
    if validate:
        if data == "builtin":
            raise ValueError("--validate: expected --data with the file or public data set to check")
        _validate(read_file(data, format=format, seed=seed, false_target=false_target), model, skipped, as_json)
        return
    loaded = loc_edit.load_facts(
        data, format=format, seed=seed, skip_invalid=skip_invalid, skipped=skipped, false_target=false_target
    )
    chosen = [fact for fact in loaded if relation in (None, fact.relation)]
    if not chosen:
        raise ValueError(f"{data}: no fact of relation {relation!r}")
    if known or min_probability:
        chosen = _known(chosen, model or "builtin", known, min_probability, skip_invalid)
        out.print(f"{len(chosen):,} of {len(loaded):,} facts are known to {escape(model or 'builtin')}")
    sampled = set(loc_edit.sample_by_relation(chosen, n))
    chosen = [fact for fact in chosen if fact in sampled]  # in the order of the file
    if save:
        _save(chosen, save)
    if as_json:
        print_json({"facts": chosen, "of": len(loaded), "file": save})
    elif not save:
        _print_facts(chosen)


def _print_facts(facts: "Facts") -> None:
    table = Table("id", "relation", "prompt", "true", "false")
    for fact in facts:
        cells = (str(fact.fact_id), fact.relation, fact.prompt, fact.target_true, fact.target_new or "")
        table.add_row(*map(escape, cells))
    out.print(table)


def _save(facts: "Facts", path: Path) -> None:
    if not facts:
        raise ValueError(f"--save {path}: no fact is left to save")
    loc_edit.save_facts(facts, path)
    out.print(f"saved {len(facts):,} facts in {escape(str(path))}")


def _known(facts: "Facts", model: str, known: bool, min_probability: float, skip_invalid: bool) -> "Facts":
    """The facts that the model knows."""
    net = loc_edit.load_model(model)
    if skip_invalid:
        facts, refusals = _usable(net, facts)
        _print_errors("facts that the model cannot take are left out", refusals)
    with progress():
        return loc_edit.known_facts(net, facts, known=known, min_probability=min_probability)


def _validate(file: "FactFile", model: str | None, skipped: Path | None, as_json: bool) -> None:
    """Prints the contents of a file of facts; refuses it if a record or fact cannot be used."""
    from loc_edit.facts.loading import save_skipped

    counts, refusals = file.counts(), list[str]()
    if model is not None:
        usable, refusals = _usable(loc_edit.load_model(model), file.facts)
        counts[f"usable with {model}"] = len(usable)
    malformed = [str(error) for error in file.errors]
    if as_json:
        about = {"path": file.path, "format": file.format, "counts": counts}
        print_json({**about, "malformed": malformed, "not_usable": refusals})
    else:
        title = f"{escape(str(file.path))}, format {file.format}"
        table = Table("", *numbers(""), title=title, title_justify="left", show_header=False)
        for words, count in counts.items():
            table.add_row(escape(words), f"{count:,}")
        out.print(table)
    _print_errors("malformed", malformed)
    _print_errors(f"not usable with {model}", refusals)
    if skipped is not None:
        save_skipped(file.errors, skipped)
        out.print(f"saved the list of {len(file.errors):,} malformed records in {escape(str(skipped))}")
    if file.errors or refusals:
        total = len(file.facts) + len(file.errors)
        raise loc_edit.BadFact(f"{file.path}: {len(file.errors) + len(refusals):,} of {total:,} records cannot be used")


def _usable(model: "Model", facts: "Facts") -> "tuple[Facts, list[str]]":
    """The facts that the model's tokenizer and context can take, and why they cannot take the others."""
    from loc_edit.prompts.encoding import encode_all

    prompts = encode_all(model, facts)
    usable = [fact for fact, prompt in zip(facts, prompts, strict=True) if not isinstance(prompt, Exception)]
    return usable, [str(prompt) for prompt in prompts if isinstance(prompt, Exception)]


def _print_errors(title: str, errors: list[str]) -> None:
    """Prints how many errors there are, and the first few of them."""
    if errors:
        err.print(f"{escape(title)}: {len(errors):,}")
        for error in errors[:SHOWN]:
            err.print(f"  {escape(error)}", soft_wrap=True)
        if len(errors) > SHOWN:
            err.print(f"  and {len(errors) - SHOWN:,} more")
