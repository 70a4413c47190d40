"""The exit statuses of `loc-edit`; docs/commands.md has the same table."""

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "Exit":
        """A status and what it means."""
        status = int.__new__(cls, value)
        status._value_, status.meaning = value, meaning
        return status

    DONE = 0, "done"
    ERROR = 1, "an error, in one line"
    USAGE = 2, "a command or an option that does not exist or does not parse"
    CELLS_FAILED = 3, "the run came to its end, and every edit of some cell has failed"
    UNWELL = 4, "`loc-edit doctor` has found a problem"
    STOPPED = 128, "stopped by a signal: this number and the signal's, 130 after Ctrl-C, 143 after SIGTERM"
