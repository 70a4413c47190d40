"""The command that writes an edited model back to a Hugging Face directory."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from loc_edit.cli.show import out as screen


def export(edits: Annotated[tuple[Path, ...], tyro.conf.Positional], model: Path, out: Path) -> None:
    """Write a local Hugging Face checkpoint with saved edits in its weights to a new directory.

    Args:
        edits: files that `loc-edit edit --save` or `Edit.save` wrote, applied in this order.
        model: the checkpoint's directory, with safetensors.
        out: a directory that does not exist yet.
    """
    import loc_edit

    if not edits:
        raise ValueError("export: which edits?  Give the files that `loc-edit edit --save` wrote")
    loaded = [loc_edit.Edit.load(path) for path in edits]
    written = loc_edit.export(loaded, model, out)
    for path, edit in zip(edits, loaded, strict=True):
        screen.print(escape(f"{path}: {edit!r}"))
    screen.print(f"written: [bold]{escape(str(written))}[/]")
