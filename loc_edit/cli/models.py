"""The command that lists and fetches real models; and the step before every command that loads one."""

from typing import Annotated

import tyro
from rich.markup import escape

from loc_edit.cli.options import AcceptTerms
from loc_edit.cli.show import Json, numbers, out, plain_table, print_json, progress, size
from loc_edit.files import cache_folder


def models(
    name: Annotated[str | None, tyro.conf.Positional] = None,
    accept_terms: AcceptTerms = False,
    as_json: Json = False,
) -> None:
    """List the models that have a name, or fetch one of them.

    With NAME, that model is downloaded and converted.

    Examples:
        loc-edit models
        loc-edit models smollm2
        loc-edit models gemma3-270m --accept-terms

    Args:
        name: A named model, or a GGUF file.
    """
    from loc_edit.models.catalog import kept_models
    from loc_edit.models.named import NAMED

    if name is not None:
        fetch(name, accept_terms)
    kept = kept_models()
    in_cache = {model.about["sha256"]: model for model in kept}
    named = [(model, in_cache.pop(model.sha256, None)) for model in NAMED.values()]
    if as_json:
        names = ("name", "title", "license", "size")
        models = [{name: getattr(m, name) for name in names} | {"folder": here and here.folder} for m, here in named]
        others = [
            {"name": kept.about["source"], "size": kept.size, "folder": kept.folder} for kept in in_cache.values()
        ]
        print_json({"models": models, "others": others, "cache": cache_folder("models")})
        return
    table = plain_table("name", "model", "license", *numbers("download", "in the cache"))
    for model, here in named:
        cells = (model.name, model.title, model.license, size(model.size), size(here.size) if here else "no")
        table.add_row(*map(escape, cells))
    out.print(table)
    if in_cache:
        table = plain_table("GGUF file", "directory", *numbers("in the cache"))
        for other in in_cache.values():
            table.add_row(escape(other.about["source"]), escape(str(other.folder)), size(other.size))
        out.print(table)
    out.print(f"the cache is {escape(str(cache_folder('models')))}; its folders may be deleted", soft_wrap=True)


def fetch(model: str, accept_terms: bool) -> None:
    """Downloads or converts a named model or a GGUF file that the cache does not have, and shows the progress.

    Terms that have not been accepted are shown before the error.
    """
    from loc_edit.models.catalog import TermsNotAccepted, model_directory, terms_text

    try:
        with progress():
            model_directory(model, accept_terms=accept_terms)
    except TermsNotAccepted as refusal:
        out.print(terms_text(refusal.model), markup=False)
        raise
