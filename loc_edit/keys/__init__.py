"""Keys: text corpora, and the second moments of the keys, which ROME, MEMIT and their kin solve against."""
