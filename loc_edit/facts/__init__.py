"""Facts: their form, the files and data sets that they are read from, and the choice of those that a study edits."""
