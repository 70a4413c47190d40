"""The command that writes an edited model as a Hugging Face directory."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

import loc_edit
from loc_edit.cli.show import out as screen


def export(edits: Annotated[tuple[Path, ...], tyro.conf.Positional], model: str, out: Path) -> None:
    """Write saved edits into a Hugging Face checkpoint.

    The new checkpoint is a directory of its own; the model's stays as it is.

    Examples:
        loc-edit export edit.safetensors --model smollm2 --out edited

    Args:
        edits: Files that `loc-edit edit --save` or `Edit.save` wrote, applied in this order.
        model: The checkpoint: a directory with weights as safetensors, a named model, or a GGUF file.
        out: A directory that does not exist yet.
    """
    if not edits:
        raise ValueError("export: expected at least one file that `loc-edit edit --save` wrote")
    loaded = [loc_edit.Edit.load(path) for path in edits]
    written = loc_edit.export(loaded, model, out)
    for path, edit in zip(edits, loaded, strict=True):
        screen.print(escape(f"{path}: {edit!r}"))
    screen.print(f"written: [bold]{escape(str(written))}[/]")
