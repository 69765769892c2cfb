"""What counting alone achieves, which a model must beat: byte 3-grams, token frequencies, and scores of words."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from chatpipe.data.rankings import Ranking
from chatpipe.data.text_blocks import ValidationText
from chatpipe.data.token_store import TokenStore
from chatpipe.evaluation.pair_accuracy import Pairs, ordered_pairs

# ---- text ----

BOUNDARY = 256
"""The symbol at the beginning and the end of a document; 0 to 255 are bytes."""
SYMBOLS = 257
CHUNK = 1 << 19
"""Bytes counted at a time, and the rest of a document, which bounds the memory that a large corpus takes."""
COUNTED_AT_ONCE = 2**22
"""Tokens, which bounds the memory that a large store takes."""


def trigram_bits_per_byte(train: Iterable[bytes] | Iterable[str], validation: Sequence[bytes] | Sequence[str]) -> float:
    """The bits that a 3-gram model of `train` needs for a byte of `validation`, both documents; text is taken as UTF-8.

    `train` is read once, and what is kept of it are the counts.
    The ends of documents are left out on both sides, as a language model's end-of-text tokens are.
    Raises ValueError when `validation` has no bytes.
    """
    documents = list(_as_bytes(validation))
    num_bytes = sum(map(len, documents))
    if num_bytes == 0:
        raise ValueError("there is no validation text")
    model = TrigramModel(_as_bytes(train))
    bits = 0.0
    for first, second, symbol in _trigrams(documents):
        text = symbol != BOUNDARY
        bits -= np.log2(model.probability(first[text], second[text], symbol[text])).sum()
    return float(bits / num_bytes)


def unigram_nats(
    train: Sequence[TokenStore], validation: ValidationText, special_ids: tuple[int, ...], tokens: int
) -> float:
    """Nats per token of guessing by frequencies in `train` (plus one, for `tokens` tokens), without special ones."""
    counts = np.ones(tokens)
    for store in train:
        for start in range(0, len(store), COUNTED_AT_ONCE):
            counts += np.bincount(store.read(start, min(COUNTED_AT_ONCE, len(store) - start)), minlength=tokens)
    counts[list(special_ids)] = 0
    asked = validation.tokens
    asked = asked[~np.isin(asked, special_ids)]
    return float(-np.log(counts[asked] / counts.sum()).mean())


class TrigramModel:
    """An interpolated 3-gram model over 256 bytes and the boundary, with Witten-Bell smoothing.

    p(w | h) = (c(h, w) + T(h) p(w | h')) / (c(h) + T(h)), where c counts, T(h) is the number of different symbols seen
    behind the context h, and h' is h without its oldest symbol; below the 1-gram lies the uniform distribution. (Witten
    and Bell 1991, method C, as interpolated in Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for
    Language Modeling", section 2.6.)
    """

    def __init__(self, documents: Iterable[bytes]) -> None:
        counts = np.zeros(SYMBOLS**3, dtype=np.int32)
        for first, second, symbol in _trigrams(documents):
            keys = (first.astype(np.int32) * SYMBOLS + second) * SYMBOLS + symbol
            seen, times = np.unique(keys, return_counts=True)  # bincount would take as much as all counts again
            counts[seen] += times.astype(np.int32)
        self.trigrams = counts.reshape(SYMBOLS, SYMBOLS, SYMBOLS)
        bigrams = self.trigrams.sum(0, dtype=np.int64)
        unigrams = bigrams.sum(0)
        uniform = np.full(SYMBOLS, 1 / SYMBOLS)
        unigram_probs = _interpolate(unigrams, unigrams.sum(), (unigrams > 0).sum(), uniform)
        totals, kinds = bigrams.sum(1, keepdims=True), (bigrams > 0).sum(1, keepdims=True)
        self.bigram_probs = _interpolate(bigrams, totals, kinds, unigram_probs)
        self.totals = self.trigrams.sum(2, dtype=np.int64)
        # one after the other: all at once they would take another 17 MB
        self.kinds = np.stack([np.count_nonzero(behind, axis=1) for behind in self.trigrams])

    def probability(self, first: np.ndarray, second: np.ndarray, symbol: np.ndarray) -> np.ndarray:
        """p(symbol | first, second), element by element; the arguments broadcast."""
        return _interpolate(
            self.trigrams[first, second, symbol],
            self.totals[first, second],
            self.kinds[first, second],
            self.bigram_probs[second, symbol],
        )


def _interpolate(count: np.ndarray, total: np.ndarray, kinds: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Witten-Bell: counts in a context mixed with the `lower` order; that alone where the context is unseen."""
    return np.where(total > 0, (count + kinds * lower) / np.maximum(total + kinds, 1), lower)


def _as_bytes(documents: Iterable[bytes] | Iterable[str]) -> Iterator[bytes]:
    return (document.encode() if isinstance(document, str) else document for document in documents)


def _trigrams(documents: Iterable[bytes]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All (first, second, symbol) of the documents, each with two boundaries before it and one behind, in chunks."""
    waiting: list[bytes] = []
    size = 0
    for document in documents:
        waiting.append(document)
        size += len(document)
        if size >= CHUNK:
            yield _trigrams_of(waiting)
            waiting, size = [], 0
    if waiting:
        yield _trigrams_of(waiting)


def _trigrams_of(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    symbols = np.full(2 + sum(len(document) + 2 for document in documents), BOUNDARY, dtype=np.uint16)
    at = 2
    for document in documents:
        symbols[at : at + len(document)] = np.frombuffer(document, dtype=np.uint8)
        at += len(document) + 2
    first, second, symbol = symbols[:-2], symbols[1:-1], symbols[2:]
    # Of the two boundaries between documents, the first ends one, the second only begins the next.
    predicted = (second != BOUNDARY) | (symbol != BOUNDARY)
    return first[predicted], second[predicted], symbol[predicted]


# ---- rankings ----

WORD = re.compile(r"\w+|[^\w\s]")
MIN_ANSWERS = 2
"""A word must occur in so many training answers; a rarer one is no evidence about other answers."""
LENGTHS = 2
"""Features of the length: the logarithms of the number of characters and of words."""
PENALTY = 30.0
"""The factor of half the squared weights in the loss. Tried on hh-rlhf and alpaca_eval (docs/rm.md)."""
MAX_RANKINGS = 20_000
"""The first ones are read; more would take minutes and change little."""
MAX_STEPS = 500
PRECISION = 1e-4
"""The largest entry of the gradient at the end, as a share of the first one."""


@dataclass(frozen=True)
class WordCounts:
    """The simplest reward model that reads: a score for each word and for the length, learned from the training pairs.

    A logistic regression on the differences of two answers (Bradley and Terry 1952). It knows neither the prompt nor
    the order of words. A reward model that is no better has learned only which words annotators like.

    `vocabulary`: the place of each known word's weight. `weights`: those of words, then those of the length.
    """

    vocabulary: dict[str, int]
    weights: np.ndarray

    @classmethod
    def learn(cls, rankings: Sequence[Ranking]) -> "WordCounts":
        """Learns from all pairs that annotators do not tie."""
        rankings = rankings[:MAX_RANKINGS]
        texts = _texts(rankings)
        counts = Counter(word for text in texts for word in set(_words(text)))
        known = sorted(word for word, count in counts.items() if count >= MIN_ANSWERS)
        vocabulary = {word: number for number, word in enumerate(known)}
        pairs = ordered_pairs([[-rank for rank in ranking.ranks] for ranking in rankings])
        return cls(vocabulary, _fit(_features(texts, vocabulary), pairs, PENALTY))

    def scores(self, rankings: Sequence[Ranking]) -> list[list[float]]:
        """A score for each response of each ranking."""
        features = _features(_texts(rankings), self.vocabulary)
        found = iter(torch.sparse.mm(features, torch.from_numpy(self.weights)[:, None])[:, 0].tolist())
        return [[next(found) for _ in ranking.responses] for ranking in rankings]


def _texts(rankings: Sequence[Ranking]) -> list[str]:
    return [text for ranking in rankings for text in ranking.texts()]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _features(texts: Sequence[str], vocabulary: dict[str, int]) -> Tensor:
    """log(1 + count) of each known word, and the logarithms of the length: sparse float64 [answers, columns]."""
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for row, text in enumerate(texts):
        words = _words(text)
        found = {vocabulary[word]: log(1 + count) for word, count in Counter(words).items() if word in vocabulary}
        found |= {len(vocabulary): log(1 + len(text)), len(vocabulary) + 1: log(1 + len(words))}
        rows += [row] * len(found)
        columns += found.keys()
        values += found.values()
    size = (len(texts), len(vocabulary) + LENGTHS)
    cells = torch.tensor([rows, columns], dtype=torch.long)
    return torch.sparse_coo_tensor(
        cells, torch.tensor(values, dtype=torch.float64), size, check_invariants=True
    ).coalesce()


def _fit(features: Tensor, pairs: Pairs, penalty: float) -> np.ndarray:
    """The weights with the smallest sum of -log sigmoid(lead of the better) + penalty / 2 |weights|^2."""
    better, worse = torch.from_numpy(pairs.better), torch.from_numpy(pairs.worse)
    weights = torch.zeros(features.shape[1], 1, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        weights.grad = None
        scores = torch.sparse.mm(features, weights)
        value = -logsigmoid(scores[better] - scores[worse]).sum() + penalty / 2 * weights.square().sum()
        value.backward()
        return value

    loss()
    assert weights.grad is not None
    enough = PRECISION * weights.grad.abs().max().item()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=MAX_STEPS, tolerance_grad=enough, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    optimizer.step(loss)
    return weights.detach()[:, 0].numpy()
