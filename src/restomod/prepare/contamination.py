"""Training documents that repeat evaluation texts, found by their word n-grams.

In: the texts of evaluation sets, once, which become an `NgramIndex` that is saved and mapped into
memory, so that all processes of a machine share it. Out: for any document, which share of its words
stands in an n-gram that an evaluation text has too, and the first such n-gram. Words are those of
`ngrams`: lower case, without punctuation, so that layout does not hide a copy. N-grams of 13 words
as in GPT-3 (Brown et al. 2020, appendix C), which also shortened them to 8 words for sets of short
examples; here a text shorter than an n-gram is looked for as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from restomod.errors import UserError
from restomod.prepare.atomic import read_json, replacing, write_json
from restomod.prepare.ngrams import ngram_hashes, ngrams_of_length, word_hashes, words

FORMAT = 1
ATTRIBUTES, HASHES, SETS, FILTER = "index.json", "hashes.npy", "sets.npy", "filter.npy"
MOST_SETS = 1 << 16


@dataclass
class ContaminationConfig:
    """Against which texts documents are checked, and how much of one may be shared."""

    against: list[str] = field(default_factory=list)
    """Files or folders with evaluation texts, an evaluation set each; none switches it off."""
    text_fields: list[str] = field(default_factory=lambda: ["text"])
    """Fields of the evaluation sets' records; each is a text of its own, and may be missing."""
    ngram: int = 13
    """Words in a row that count as a copy."""
    shortest_words: int = 8
    """Evaluation texts of fewer words are not looked for: too many documents hold them by chance.
    Those between this and `ngram` words are looked for as a whole."""
    max_share: float = 0.0
    """A document is dropped when more than this share of its words is copied; 0 drops every
    document with a copied n-gram."""


def impossible(config: ContaminationConfig) -> list[tuple[str, str]]:
    """Return (key, reason) for values that cannot work, as `load_strict` asks for."""
    problems = []
    if not config.text_fields:
        problems.append(("text_fields", "name at least one field"))
    if not 1 <= config.ngram <= 1000:
        problems.append(("ngram", f"{config.ngram} is outside 1 to 1000"))
    if not 1 <= config.shortest_words <= config.ngram:
        problems.append(
            ("shortest_words", f"{config.shortest_words} is outside 1 to ngram, {config.ngram}")
        )
    if not 0 <= config.max_share < 1:
        problems.append(("max_share", f"{config.max_share} is outside [0, 1)"))
    return problems


@dataclass(frozen=True)
class Overlap:
    """What a document has in common with the evaluation texts."""

    share: float
    """Words that stand in a shared n-gram, as a share of all words; 0 without any."""
    first: str
    """The first shared n-gram, normalised; empty without one."""
    evaluation_set: str
    """The first evaluation set that has this n-gram; empty without one."""


NOTHING = Overlap(0.0, "", "")


@dataclass(frozen=True, eq=False)
class NgramIndex:
    """The n-grams of all evaluation texts."""

    ngram: int
    """Words of an n-gram."""
    lengths: tuple[int, ...]
    """Words of what is looked for, sorted: `ngram`, and shorter ones for texts looked for whole."""
    sets: tuple[str, ...]
    """Names of the evaluation sets."""
    texts: int
    """Evaluation texts that are looked for."""
    texts_too_short: int
    """Those with less than `shortest_words` words, which are not."""
    hashes: np.ndarray
    """[n] uint64, sorted, without repeats: the n-grams of all lengths."""
    set_of: np.ndarray
    """[n] uint16, the first evaluation set that has the n-gram, as its place in `sets`."""
    filter: np.ndarray
    """[2**k] bool, whether any hash begins with these k bits: one look at it spares most n-grams
    the search in `hashes`."""

    @classmethod
    def build(
        cls, evaluation_sets: Mapping[str, Iterable[str]], config: ContaminationConfig
    ) -> NgramIndex:
        """Index the texts of evaluation sets by name. Raises UserError when nothing is left to
        look for, and for more than 65,536 sets."""
        if len(evaluation_sets) > MOST_SETS:
            raise UserError(f"{len(evaluation_sets)} evaluation sets: at most {MOST_SETS} fit")
        hashes, set_of = np.empty(0, np.uint64), np.empty(0, np.uint16)
        lengths: set[int] = set()
        texts = too_short = 0
        for number, evaluation_texts in enumerate(evaluation_sets.values()):
            found = [np.empty(0, np.uint64)]
            for text in evaluation_texts:
                of_words = word_hashes(words(text))
                n = min(len(of_words), config.ngram)
                if n < config.shortest_words:
                    too_short += 1
                    continue
                found.append(ngrams_of_length(of_words, n))
                lengths.add(n)
                texts += 1
            new = np.setdiff1d(np.concatenate(found), hashes)
            hashes = np.concatenate([hashes, new])
            set_of = np.concatenate([set_of, np.full(len(new), number, np.uint16)])
            order = np.argsort(hashes)
            hashes, set_of = hashes[order], set_of[order]
        if not texts:
            raise UserError(
                f"the evaluation sets hold no text of {config.shortest_words} words or more "
                f"({too_short} shorter ones); check their paths and the field of the text"
            )
        bits = _filter_bits(len(hashes))
        may_hold = np.zeros(1 << bits, np.bool_)
        may_hold[hashes >> np.uint64(64 - bits)] = True
        return cls(
            ngram=config.ngram,
            lengths=tuple(sorted(lengths)),
            sets=tuple(evaluation_sets),
            texts=texts,
            texts_too_short=too_short,
            hashes=hashes,
            set_of=set_of,
            filter=may_hold,
        )

    def overlap(self, text: str) -> Overlap:
        """Return what a document has in common with the evaluation texts."""
        found = words(text)
        hashes = word_hashes(found)
        covered: np.ndarray | None = None
        first: tuple[int, int, int] | None = None
        for n, of_length in enumerate(ngram_hashes(hashes, self.lengths[-1]), start=1):
            if n not in self.lengths:
                continue
            starts, places = self._find(of_length)
            if not len(starts):
                continue
            if covered is None:
                covered = np.zeros(len(found) + 1, np.int64)
            covered[starts] += 1
            covered[starts + n] -= 1
            here = (int(starts[0]), n, int(self.set_of[places[0]]))
            first = here if first is None else min(first, here)
        if covered is None or first is None:
            return NOTHING
        start, n, number = first
        return Overlap(
            share=float(np.count_nonzero(np.cumsum(covered[:-1])) / len(found)),
            first=" ".join(found[start : start + n]),
            evaluation_set=self.sets[number],
        )

    def _find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of `hashes` are in the index, and where in it they are."""
        shift = np.uint64(64 - (len(self.filter).bit_length() - 1))
        candidates = np.flatnonzero(self.filter[hashes >> shift])
        wanted = hashes[candidates]
        places = np.searchsorted(self.hashes, wanted)
        places[places == len(self.hashes)] = 0
        same = self.hashes[places] == wanted
        return candidates[same], places[same]

    def save(self, folder: Path) -> None:
        """Write the index into a new folder, which appears whole; one that exists is replaced."""
        attributes = {
            "format": FORMAT,
            "ngram": self.ngram,
            "lengths": self.lengths,
            "sets": self.sets,
            "texts": self.texts,
            "texts_too_short": self.texts_too_short,
        }
        with replacing(folder) as partial:
            partial.mkdir()
            np.save(partial / HASHES, self.hashes)
            np.save(partial / SETS, self.set_of)
            np.save(partial / FILTER, self.filter)
            write_json(partial / ATTRIBUTES, attributes)

    @classmethod
    def load(cls, folder: Path) -> NgramIndex:
        """Map a saved index into memory; processes of one machine share its pages. Raises
        UserError for a folder that holds none, or one of another version."""
        try:
            attributes = read_json(folder / ATTRIBUTES)
            arrays = [np.load(folder / name, mmap_mode="r") for name in (HASHES, SETS, FILTER)]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: holds no index of evaluation texts: {error}") from error
        if attributes["format"] != FORMAT:
            raise UserError(
                f"{folder}: was written by another version of this program; delete it, and it is "
                "made again"
            )
        return cls(
            ngram=attributes["ngram"],
            lengths=tuple(attributes["lengths"]),
            sets=tuple(attributes["sets"]),
            texts=attributes["texts"],
            texts_too_short=attributes["texts_too_short"],
            hashes=arrays[0],
            set_of=arrays[1],
            filter=arrays[2],
        )


def _filter_bits(hashes: int) -> int:
    """Return how many bits leave one place in four or fewer taken."""
    return max(10, (4 * hashes - 1).bit_length())
