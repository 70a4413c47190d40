"""The report: one run as one HTML page. No torch in this room."""
