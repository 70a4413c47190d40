"""Rows on disk: a run folder of atomic, checksummed Parquet shards that survives kills.  No torch here.

A run folder holds

    config.toml        the resolved configuration of the last start; it marks the folder as a run
    selection.json     the cells and facts of that configuration: which of the rows are meant
    provenance.json    versions, seed, model fingerprint, and the version of the rows' schema
    traces/*.parquet   one shard per unit of tracing
    edits/*.parquet    one shard per unit of editing
    history/           configurations and selections of earlier starts
    log.jsonl          what happened when, one JSON object a line
    tables/, figures/  made later from the rows

There is no manifest beside: the folder's listing is the manifest.  A shard's name holds its unit and its checksum,
its footer its cell, its facts and their contents, and it appears by one rename; so what is done is read off the shards
themselves, and a second list could only be torn, or fall out of step with them.  (The selection says what is wanted,
not what is there.  It is made anew at every start.)
"""
