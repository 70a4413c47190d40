"""The cells and facts of the present configuration: which rows of a run folder are read by default.

A folder may also hold rows of earlier configurations.  They stay there, and are read only on request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loc_edit.files import Damaged, read_json, write_json
from loc_edit.store.layout import HISTORY, SELECTION
from loc_edit.store.rows import Kind
from loc_edit.store.settings import plain


@dataclass(frozen=True)
class Selection:
    """The cells and facts of a configuration.

    Attributes:
        traces: the name of each tracing cell, with a description of the cell.
        edits: the same for editing cells, including controls.
        facts: the id of each fact, with the name of the fact's content.
        sequences: the cells of edits in sequence.
    """

    traces: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    edits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[int, str] = field(default_factory=dict)
    sequences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def cells(self, kind: Kind) -> Mapping[str, Mapping[str, Any]]:
        """The cells of one kind of rows."""
        return {"traces": self.traces, "edits": self.edits, "sequences": self.sequences}[kind]

    def write(self, folder: Path) -> None:
        """Writes the selection into a run folder."""
        facts = {str(fact_id): content for fact_id, content in self.facts.items()}
        values: dict[str, Any] = {"traces": plain(self.traces), "edits": plain(self.edits), "facts": facts}
        values |= {"sequences": plain(self.sequences)} if self.sequences else {}
        write_json(folder / SELECTION, values, indent=0)

    @classmethod
    def read(cls, folder: Path) -> "Selection | None":
        """Reads the selection of a run folder; `None` if it has none.

        Raises:
            Damaged: the file is damaged, or was edited.
        """
        path = folder / SELECTION
        if not path.exists():
            return None
        try:
            values = read_json(path)
            facts = {int(fact_id): str(content) for fact_id, content in values["facts"].items()}
            sequences = dict(values.get("sequences", {}))  # folders of earlier versions have none
            return cls(dict(values["traces"]), dict(values["edits"]), facts, sequences)
        except (Damaged, ValueError, KeyError, TypeError, AttributeError) as error:
            words = str(error) if isinstance(error, Damaged) else f"{path} is damaged: {error}"
            raise Damaged(f"{words}; run the experiment again to write it anew") from error


def earlier_cells(folder: Path, kind: Kind) -> dict[str, Mapping[str, Any]]:
    """The cells of earlier configurations of a run, from its `history/`; damaged files are left out."""
    cells: dict[str, Mapping[str, Any]] = {}
    for path in sorted((folder / HISTORY).glob(f"*-{SELECTION}")):
        try:
            cells |= read_json(path).get(kind, {})
        except (Damaged, KeyError, TypeError):
            continue
    return cells
