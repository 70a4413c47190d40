"""The package's own editors by name, registered as yours are."""

from collections.abc import Callable
from typing import Any

from loc_edit.editing.alphaedit import alphaedit
from loc_edit.editing.contract import EDITORS as EDITORS, editor
from loc_edit.editing.emmet import emmet
from loc_edit.editing.finetune import finetune
from loc_edit.editing.memit import memit, memit_joint
from loc_edit.editing.r_rome import r_rome
from loc_edit.editing.rome import rome
from loc_edit.editing.update import Edit

JOINT: dict[str, Callable[..., Edit]] = {"memit": memit_joint}
"""By method, what writes many facts into one edit, where `WAYS_OF` names the way `joint`."""

_OWN: dict[str, Callable[..., Any]] = {
    "rome": rome,
    "r_rome": r_rome,
    "emmet": emmet,
    "memit": memit,
    "alphaedit": alphaedit,
    "finetune": finetune,
    "finetune_free": finetune,
    "finetune_decay": finetune,
}
for _name, _edit_all in _OWN.items():
    editor(_name)(_edit_all)
