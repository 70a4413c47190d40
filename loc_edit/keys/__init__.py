"""The uncentred second moment of the keys, E[k k^T], which ROME and MEMIT solve against.

`compute` finds the statistics in the cache or makes one pass over a corpus (`tokens`, `streaming`); `moments` is the
result, which solves; `disk` writes large files a tensor at a time; `planning` says what a pass would cost.
"""

from loc_edit.keys.compute import key_stats
from loc_edit.keys.moments import BadKeyStats, KeyStats
from loc_edit.keys.planning import StatsPlan, plan_stats

__all__ = ["BadKeyStats", "KeyStats", "StatsPlan", "key_stats", "plan_stats"]
