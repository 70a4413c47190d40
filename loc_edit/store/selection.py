"""Which rows of a folder the present configuration is about: its cells and its facts.

A folder may hold rows of earlier configurations besides.  They stay, and are left out of what is read unless asked for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loc_edit.files import disk_errors, write_atomic
from loc_edit.store.settings import plain

SELECTION = "selection.json"
HISTORY = "history"


@dataclass(frozen=True)
class Selection:
    """The cells and facts of a configuration.

    Attributes:
        traces: by the name of each cell of tracing, what it is.
        edits: likewise of editing; controls are among them.
        facts: by fact id, the name of the fact's content.
    """

    traces: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    edits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[int, str] = field(default_factory=dict)

    def cells(self, kind: str) -> Mapping[str, Mapping[str, Any]]:
        """The cells of one kind of rows."""
        return self.traces if kind == "traces" else self.edits

    def write(self, folder: Path) -> None:
        """Write it into a run's folder."""
        facts = {str(fact_id): content for fact_id, content in self.facts.items()}
        values = {"traces": plain(self.traces), "edits": plain(self.edits), "facts": facts}
        write_atomic(folder / SELECTION, (json.dumps(values, indent=0, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> "Selection | None":
        """That of a run's folder; `None` where there is none: then all rows are meant.

        Raises:
            ValueError: it is damaged.
        """
        path = folder / SELECTION
        try:
            with disk_errors("read", path):
                values = json.loads(path.read_bytes())
            facts = {int(fact_id): str(content) for fact_id, content in values["facts"].items()}
            return cls(dict(values["traces"]), dict(values["edits"]), facts)
        except OSError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}; run the experiment again to write it anew") from error


def earlier_cells(folder: Path, kind: str) -> dict[str, Mapping[str, Any]]:
    """The cells of earlier configurations of a run, from its `history/`; damaged files are left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted((folder / HISTORY).glob(f"*-{SELECTION}")):
        try:
            found |= json.loads(path.read_bytes())[kind]
        except (ValueError, KeyError, TypeError):
            continue
    return found
