"""Stores rows in a run folder of atomic, checksummed Parquet shards that survives kills.  No torch here.

A run folder holds

    config.toml        the resolved configuration of the last start; it marks the folder as a run
    selection.json     the cells and facts of that configuration, whose rows are read by default
    provenance.json    versions, seed, model fingerprint, and the version of the rows' schema
    contexts.json      the texts before which edit prompts are put
    key_stats.json     checksums of the key statistics behind the rows
    traces/*.parquet   one shard per unit of tracing
    edits/*.parquet    one shard per unit of editing
    history/           configurations and selections of earlier starts
    log.jsonl          the log: one JSON object per line, with its time
    tables/, figures/  made later from the rows

There is no separate manifest: the listing of the folder is the manifest.  The name of a shard holds its unit and its
checksum, its footer holds its cell and its facts with their contents, and the shard appears by one rename.  So the
shards themselves tell which units are done, and no second list can be torn or disagree with them.  The selection lists
the rows that the configuration asks for, not the rows that exist; every start writes it anew.
"""
