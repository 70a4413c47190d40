"""Facts: what one is, where they come from, and which of them a study takes. No torch in this room."""
