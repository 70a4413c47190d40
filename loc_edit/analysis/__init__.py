"""Analysis: the rows of a run as frames, tables, regressions and figures. No torch in this room."""
