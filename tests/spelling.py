"""Tokenizers trained here, and what a token stands for by its spelling: an oracle that knows no offsets."""

import re
import unicodedata

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ("byte-level BPE", "Metaspace BPE", "Metaspace BPE, unsplit", "unigram", "byte-level BPE, trimmed")
"""As in GPT-2; as in SentencePiece's BPE with byte fallback, by words and (as in Llama) across them; as in T5; as in
RoBERTa, whose offsets leave the space before a word out."""
UNKNOWN = "<unk>"
SPACE = "\u2581"
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def train(kind, texts, vocab_size=2500):
    """A fast tokenizer of one of the `KINDS`."""
    quiet = {"vocab_size": vocab_size, "show_progress": False}
    if kind.startswith("byte-level"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets="trimmed" in kind)
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **quiet)
        backend.train_from_iterator(texts, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=backend)
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(special_tokens=[UNKNOWN], unk_token=UNKNOWN, **quiet)
    else:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNKNOWN, fuse_unk=True))
        if "unsplit" in kind:
            backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace()
        strip = decoders.Strip(" ", 1, 0)
        backend.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), strip]
        )
        trainer = trainers.BpeTrainer(special_tokens=[UNKNOWN, *BYTES], max_token_length=16, **quiet)
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=UNKNOWN)


def byte_of_char():
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF_CHAR = byte_of_char()


class Speller:
    """Where each token lies in a text's bytes, by the tokens' spelling alone."""

    def __init__(self, kind, fast):
        self.kind, self.fast = kind, fast
        self.spelled = [self._spell(piece) for piece in fast.convert_ids_to_tokens(range(len(fast)))]

    def _spell(self, piece):
        """A token's bytes; `None` for the unknown one."""
        if self.kind.startswith("byte-level"):
            return bytes(BYTE_OF_CHAR[char] for char in piece)
        if piece == UNKNOWN:
            return None
        if re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def normal(self, text):
        """The text as the tokenizer sees it, but for the space before it."""
        return unicodedata.normalize("NFKC", text) if self.kind == "unigram" else text

    def places(self, ids, text):
        """[begin, end) of each token in the bytes of the (normalised) text; the space put before it is at -1."""
        pieces = [self.spelled[i] for i in ids]
        wanted = self.normal(text).encode()
        if None in pieces:
            pattern = b"".join(b"(.+?)" if p is None else b"(" + re.escape(p) + b")" for p in pieces)
            found = re.fullmatch(pattern, b" " + wanted, re.DOTALL) or re.fullmatch(pattern, wanted, re.DOTALL)
            assert found, f"{pieces} do not spell {text!r}"
            shift = len(found[0]) - len(wanted)
            return [(a - shift, b - shift) for a, b in map(found.span, range(1, len(pieces) + 1))]
        joined = b"".join(pieces)
        shift = len(joined) - len(wanted)
        assert shift in (0, 1), f"{pieces} do not spell {text!r}"
        assert joined == b" " * shift + wanted, f"{pieces} do not spell {text!r}"
        places, at = [], -shift
        for piece in pieces:
            places.append((at, at + len(piece)))
            at += len(piece)
        return places

    def span(self, ids, begin, subject, end):
        """The first and one past the last token that share a byte with the subject between two texts."""
        start = len(self.normal(begin).encode())
        stop = start + len(self.normal(subject).encode())
        sharing = [i for i, (a, b) in enumerate(self.places(ids, begin + subject + end)) if a < stop and b > start]
        return sharing[0], sharing[-1] + 1

    def ids(self, text):
        return self.fast(text, add_special_tokens=False)["input_ids"]

    def target(self, text, target):
        """(ids, how): what section 0 of the specification says, word by word; `None` where it cannot be spelt."""
        before, both = self.ids(text), self.ids(text + " " + target)
        if both[: len(before)] == before and len(both) > len(before):
            ids, how = both[len(before) :], "after the prompt"
        else:
            ids, how = self.ids(" " + target), "alone"
            if len(ids) > 1 and self.spelled[ids[0]] is not None and not self.spelled[ids[0]].strip():
                ids = ids[1:]
        if any(self.spelled[i] is None for i in ids):
            return None, how
        spelled = b"".join(self.spelled[i] for i in ids).decode()
        assert spelled.strip() == self.normal(target), f"{spelled!r} is not {target!r}"
        return ids, how
