"""The command that makes the shell complete commands and options."""

from typing import Annotated, Literal

import tyro

from loc_edit.cli.contents import COMMANDS, PROGRAM, load
from loc_edit.cli.parsing import form

FILES = f"""
_loc_edit() {{ _tyro_loc_edit; [ -n "${{COMPREPLY[*]}}" ] || COMPREPLY=(); }}
complete -o default -F _loc_edit {PROGRAM}"""
"""For bash: where tyro's script knows no completion, the names of files."""


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]) -> None:
    """Print a script that lets the shell complete commands.

    Save it once where the shell looks for such scripts, and again after an update of loc_edit.

    Examples:
        loc-edit completion bash > ~/.local/share/bash-completion/completions/loc-edit
        loc-edit completion zsh > ~/.zfunc/_loc-edit
        loc-edit completion fish > ~/.config/fish/completions/loc-edit.fish

    Args:
        shell: The shell.
    """
    forms = {name: form(load(name), {}) for name in COMMANDS}
    try:
        tyro.extras.subcommand_cli_from_dict(forms, prog=PROGRAM, args=["--tyro-print-completion", shell])
    except SystemExit as end:
        if shell == "bash" and not end.code:
            print(FILES)
        raise
