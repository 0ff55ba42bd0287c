"""Words of item texts, indexed once per catalogue: TF-IDF for likeness between items, BM25 for search.

Made from metadata alone, so it is the same for every task, split and fold, and lives in ``Items.cache``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import scipy  # its parts are loaded when they are first used: naming tools needs none of them
from numpy.typing import NDArray

from agentrec_env.data.dataset import Items
from agentrec_env.text import neutralise

MAX_TEXT = 2_000
"""Characters of one text that are indexed."""

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of ``text``: case-folded runs of letters and digits, a plural "s" cut off, in order."""
    plain = text[:MAX_TEXT] if text.isascii() else neutralise(text[:MAX_TEXT])
    return [w[:-1] if len(w) > 3 and w[-1] == "s" and w[-2] != "s" else w for w in _WORD.findall(plain.casefold())]


class TextIndex:
    """Word counts of one text an item, and the weights that follow from them.

    Args:
        texts: one text an item; None or "" where unknown.
    """

    def __init__(self, texts: Sequence[str | None]) -> None:
        self.vocabulary: dict[str, int] = {}
        """Word -> column."""
        number = self.vocabulary.setdefault
        self._tokens = [[number(word, len(self.vocabulary)) for word in words(text or "")] for text in texts]
        self.known = np.fromiter((bool(tokens) for tokens in self._tokens), bool, len(texts))
        """bool [I]: whether the item has any word."""
        self._shape = (len(texts), max(len(self.vocabulary), 1))
        self.tfidf = self._tfidf()
        """float32 CSR [I, V], unit rows: (1 + log tf) · idf."""
        self.bm25 = self._bm25()
        """float32 CSR [I, V]: what each word of an item adds to the item's score where a query holds the word."""
        self._by_word, self._tfidf_by_word = self.bm25.tocsc(), self.tfidf.tocsc()
        del self._tokens

    def _tfidf(self) -> scipy.sparse.csr_matrix:
        lengths = np.fromiter(map(len, self._tokens), np.int64, len(self._tokens))
        columns = np.fromiter((t for tokens in self._tokens for t in tokens), np.int32, int(lengths.sum()))
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        counts = scipy.sparse.csr_matrix((np.ones(len(columns), np.float32), columns, indptr), shape=self._shape)
        counts.sum_duplicates()
        documents = np.bincount(counts.indices, minlength=self._shape[1])
        idf = np.log((1 + self._shape[0]) / (1 + documents)) + 1
        counts.data = (1 + np.log(counts.data)) * idf[counts.indices].astype(np.float32)
        norm = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
        counts.data /= np.repeat(np.where(norm > 0, norm, 1), np.diff(counts.indptr)).astype(np.float32)
        return counts

    def _bm25(self) -> scipy.sparse.csr_matrix:
        if not self.vocabulary:
            return scipy.sparse.csr_matrix(self._shape, dtype=np.float32)
        import bm25s  # costs as much to import as the rest of the environment; only text needs it

        model = bm25s.BM25(method="lucene")
        model.index((self._tokens, dict(self.vocabulary)), create_empty_token=False, show_progress=False)
        parts = (model.scores["data"], model.scores["indices"], model.scores["indptr"])
        return scipy.sparse.csc_matrix(parts, shape=self._shape).tocsr()

    def like(self, item: int) -> NDArray[np.float64]:
        """float64 [I]: TF-IDF cosine of each item's text with that of ``item``; nan where either has no word."""
        scores = np.zeros(self._shape[0])
        if not self.known[item]:
            return np.full(len(scores), np.nan)
        matrix = self._tfidf_by_word
        own = slice(self.tfidf.indptr[item], self.tfidf.indptr[item + 1])
        for column, weight in zip(self.tfidf.indices[own], self.tfidf.data[own], strict=True):
            span = slice(matrix.indptr[column], matrix.indptr[column + 1])
            scores[matrix.indices[span]] += weight * matrix.data[span]
        scores[~self.known] = np.nan
        return scores

    def columns(self, query: Iterable[str]) -> NDArray[np.int64]:
        """int64 [Q]: the columns of the words of ``query`` that occur in any item."""
        found = [self.vocabulary[word] for word in query if word in self.vocabulary]
        return np.asarray(found, np.int64)

    def search(self, query: str) -> NDArray[np.float32]:
        """float32 [I]: the BM25 score of each item; a word said twice counts once."""
        scores = np.zeros(self._shape[0], np.float32)
        matrix = self._by_word
        for column in dict.fromkeys(self.columns(words(query)).tolist()):
            span = slice(matrix.indptr[column], matrix.indptr[column + 1])
            scores[matrix.indices[span]] += matrix.data[span]
        return scores


def title_index(items: Items) -> TextIndex:
    """The titles."""
    return _cached(items, "titles", lambda: items.titles)


def description_index(items: Items) -> TextIndex:
    """The descriptions."""
    return _cached(items, "descriptions", lambda: items.descriptions)


def search_index(items: Items) -> TextIndex:
    """Title, brand and category path of each item as one text."""

    def texts() -> list[str]:
        columns = zip(items.titles, items.brands, items.categories, strict=True)
        return [" ".join([title or "", brand or "", *path]) for title, brand, path in columns]

    return _cached(items, "title, brand, category", texts)


def _cached(items: Items, name: str, texts: object) -> TextIndex:
    if name not in items.cache:
        assert callable(texts)
        items.cache[name] = TextIndex(texts())
    index = items.cache[name]
    assert isinstance(index, TextIndex)
    return index
