"""Rows on disk: a run folder of atomic, checksummed Parquet shards that survives kills.  No torch here.

A run folder holds

    config.toml        the resolved configuration, written once; it marks the folder as a run
    provenance.json    versions, seed, model fingerprint, and the version of the rows' schema
    traces/*.parquet   one shard per unit of tracing
    edits/*.parquet    one shard per unit of editing
    tables/, figures/  made later from the rows

and nothing else that matters: what is done is read off the shards themselves, so there is no manifest to
tear, or to fall out of step with them.
"""

from loc_edit.store.disk import StoreError, write_atomic
from loc_edit.store.folder import BadRun, RunMismatch
from loc_edit.store.lock import RunLocked, lock_holder
from loc_edit.store.rows import KEYS, SCHEMA_VERSION, SCHEMAS, BadRows, Kind
from loc_edit.store.run import Run, load_run
from loc_edit.store.settings import cell_key, describe, differences
from loc_edit.store.shards import Shard, aside, shard_size, write_shard

__all__ = [
    "KEYS",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "BadRows",
    "BadRun",
    "Kind",
    "Run",
    "RunLocked",
    "RunMismatch",
    "Shard",
    "StoreError",
    "aside",
    "cell_key",
    "describe",
    "differences",
    "load_run",
    "lock_holder",
    "shard_size",
    "write_atomic",
    "write_shard",
]
