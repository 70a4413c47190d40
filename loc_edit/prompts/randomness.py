"""Random generators whose seed is a hash of their purpose, so that no draw depends on earlier draws."""

import hashlib

import torch


def generator(*key: object) -> torch.Generator:
    """A CPU random generator whose seed is a hash of `key`: the same key always gives the same draws."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
