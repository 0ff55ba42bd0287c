"""What fitted models may learn from: one set of interactions, and the statistics computed from it alone.

Every collaborative number in the project comes from an ``Evidence``, so "fitted on the train split only" holds by
construction: whoever has only an ``Evidence`` cannot see anything else.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are first used: naming tools needs none of them
from numpy.typing import NDArray

from agentrec_env.data.dataset import Dataset

EMBEDDING_DIM = 64
DENSE = 256
"""Users or items up to which the embedding comes from a full SVD, which is exact and the same in every run."""
MAX_BASKET = 1000
"""Users with more items than this count with their latest ones in co-occurrence, whose cost is quadratic."""


class Evidence:
    """The interactions of ``dataset`` where ``mask`` is true, and what follows from them. All lazy, computed once."""

    def __init__(self, dataset: Dataset, mask: NDArray[np.bool_]) -> None:
        self.data = replace(dataset, choice_model=None).keep(mask)  # no one who fits may see the truth
        self.cache: dict[str, Any] = {}
        """Models fitted on this evidence by tools and agents, by name."""

    @cached_property
    def popularity(self) -> NDArray[np.int64]:
        """int64 [I], interactions of each item."""
        return np.bincount(self.data.item, minlength=self.data.num_items).astype(np.int64)

    @cached_property
    def matrix(self) -> scipy.sparse.csr_matrix:
        """Binary float32 CSR [U, I]: who took what."""
        shape = (self.data.num_users, self.data.num_items)
        matrix = scipy.sparse.csr_matrix(
            (np.ones(len(self.data), np.float32), self.data.item, self.data.indptr), shape=shape, copy=True
        )
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix

    @cached_property
    def by_item(self) -> scipy.sparse.csr_matrix:
        """Binary float32 CSR [I, U]: who took each item."""
        return self.matrix.T.tocsr()

    @cached_property
    def cooccurrence(self) -> scipy.sparse.csr_matrix:
        """float32 CSR [I, I]: number of users who took both items; the diagonal is empty."""
        matrix = self.matrix
        if np.diff(matrix.indptr).max(initial=0) > MAX_BASKET:
            place = np.arange(len(self.data)) - self.data.indptr[self.data.user]
            size = np.diff(self.data.indptr)[self.data.user]
            matrix = Evidence(self.data, size - place <= MAX_BASKET).matrix
        counts = (matrix.T @ matrix).tocsr()
        counts.setdiag(0)
        counts.eliminate_zeros()
        counts.sort_indices()
        return counts

    @cached_property
    def cosine(self) -> scipy.sparse.csr_matrix:
        """float32 CSR [I, I]: co-occurrence over the root of both popularities, the item-kNN similarity."""
        users = np.asarray(self.matrix.sum(axis=0)).ravel()
        scale = np.divide(1.0, np.sqrt(users), out=np.zeros(len(users)), where=users > 0).astype(np.float32)
        counts = self.cooccurrence
        rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        return scipy.sparse.csr_matrix(
            (counts.data * scale[rows] * scale[counts.indices], counts.indices, counts.indptr),
            shape=counts.shape,
        )

    @cached_property
    def embedding(self) -> NDArray[np.float32]:
        """float32 [I, d], unit rows: truncated SVD of the popularity-scaled interactions; zero for unseen items."""
        users = np.asarray(self.matrix.sum(axis=0)).ravel()
        scale = np.divide(1.0, np.sqrt(users), out=np.zeros(len(users)), where=users > 0)
        scaled = (self.matrix @ scipy.sparse.diags(scale)).astype(np.float64)
        rank = min(EMBEDDING_DIM, min(scaled.shape) - 1)
        if rank < 1:
            return np.zeros((self.data.num_items, 1), np.float32)
        takers, taken = np.flatnonzero(np.diff(self.matrix.indptr)), np.flatnonzero(users)
        vectors = np.zeros((self.data.num_items, rank))
        if min(len(takers), len(taken)) > DENSE:
            start = np.random.default_rng(0).standard_normal(min(scaled.shape))
            from scipy.sparse.linalg import svds

            _, strength, right = svds(scaled, k=rank, v0=start)
            vectors = right.T * strength
        elif len(taken):
            # Where the rank is low ARPACK restarts from a random vector of its own, and no two runs agree to the bit.
            _, strength, right = np.linalg.svd(scaled[takers][:, taken].toarray(), full_matrices=False)
            kept = min(rank, int((strength > 1e-9 * strength[0]).sum()))
            vectors[taken, :kept] = right[:kept].T * strength[:kept]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        seen = norms > 1e-9
        unit: NDArray[np.float32] = np.divide(vectors, norms, out=np.zeros_like(vectors), where=seen).astype(np.float32)
        return unit
