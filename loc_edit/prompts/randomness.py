"""Seeded random generators: every draw depends on what it is for, never on what was drawn before it."""

import hashlib

import torch


def generator(*key: object) -> torch.Generator:
    """A CPU random generator whose seed is a hash of `key`: same key, same draws, in any order of use."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
