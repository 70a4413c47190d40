"""The command that says whether everything works here."""


def doctor() -> None:
    """Say whether everything works here, and what to do if not.

    Examples:
        loc-edit doctor
    """
