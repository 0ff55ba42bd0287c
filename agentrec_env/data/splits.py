"""Which interactions are training, which are asked about, and what may be known when.

Two protocols. ``temporal`` cuts global time 8:1:1 (AgenticRec, arXiv:2603.21613, sec. 4): whoever asks at time t knows
what happened strictly before t. ``leave_one_out`` holds out each user's last two items, for data without times and for
comparison with the literature; it lets the models see other users' later interactions, as that literature does.

Training tasks need care: a model fitted on the whole training part has seen their answers. So each task names a *fold*
of evidence that holds neither its target nor anything later. Fold 0 is the whole training part, for valid and test
tasks; training tasks use earlier time cut-offs (temporal) or the training parts of other users (leave-one-out).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from agentrec_env.data.dataset import Dataset
from agentrec_env.data.evidence import Evidence
from agentrec_env.registry import Registry, did_you_mean

TASK_SPLITS = ("train", "valid", "test")
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Split:
    """A dataset cut into training, validation and test; make one with :func:`temporal` or :func:`leave_one_out`."""

    name: str
    dataset: Dataset
    cutoffs: tuple[int, ...] = ()
    """temporal: start times (ms) of blocks 1.. of the training part, then of valid, then of test."""
    train_lengths: NDArray[np.int64] | None = None
    """leave_one_out: int64 [U], how many of each user's first interactions are training."""
    _evidence: dict[int, Evidence] = field(default_factory=dict, repr=False)

    @property
    def by_time(self) -> bool:
        """Whether "known" means strictly earlier in time, rather than earlier in the user's own order."""
        return self.train_lengths is None

    @property
    def key(self) -> str:
        """A short hash of the name and the boundaries."""
        digest = hashlib.sha256(repr((self.name, self.cutoffs)).encode())
        digest.update(b"" if self.train_lengths is None else self.train_lengths.tobytes())
        return digest.hexdigest()[:8]

    def on(self, dataset: Dataset) -> Split:
        """The same boundaries on other interactions of the same users and items."""
        lengths = None if self.train_lengths is None else np.minimum(self.train_lengths, np.diff(dataset.indptr))
        return replace(self, dataset=dataset, train_lengths=lengths, _evidence={})

    def positions(self, task_split: str) -> NDArray[np.int64]:
        """int64 [M, 2]: user and place in the user's history of each interaction that is asked about.

        Left out are those before which the user has no known item, and in "train" those without evidence.
        """
        if task_split not in TASK_SPLITS:
            raise ValueError(did_you_mean("task split", task_split, TASK_SPLITS))
        data = self.dataset
        place = np.arange(len(data)) - data.indptr[data.user]
        if self.train_lengths is not None:
            length = self.train_lengths[data.user]
            size = np.diff(data.indptr)[data.user]
            chosen = {"train": place < length, "valid": place == size - 2, "test": place == size - 1}[task_split]
            chosen = chosen & (place > 0)
            if task_split != "train":
                chosen &= place >= length
        else:
            assert data.time is not None
            valid, test = self.cutoffs[-2:]
            first, last = {"train": (self.cutoffs[0], valid), "valid": (valid, test), "test": (test, None)}[task_split]
            chosen = data.time >= first
            if last is not None:
                chosen &= data.time < last
            chosen &= data.time > data.time[data.indptr[data.user]]
        rows = np.flatnonzero(chosen)
        return np.stack([data.user[rows].astype(np.int64), place[rows]], axis=1)

    def known(self, user: int, position: int, time: int | None) -> slice:
        """The rows that ``user`` is known to have made when asking: strictly earlier ones."""
        rows = self.dataset.rows(user)
        if self.train_lengths is not None:
            return slice(rows.start, rows.start + position)
        assert self.dataset.time is not None
        assert time is not None
        return slice(rows.start, rows.start + int(np.searchsorted(self.dataset.time[rows], time, side="left")))

    def fold(self, user: int, time: int | None, task_split: str) -> int:
        """The evidence that a task of ``user`` at ``time`` may use; see :meth:`evidence_mask`."""
        if task_split != "train":
            return 0
        if self.train_lengths is not None:
            return 1 + user % FOLDS
        assert time is not None
        return bisect_right(self.cutoffs[:-2], time)

    def evidence_mask(self, fold: int) -> NDArray[np.bool_]:
        """bool [N]: the interactions in evidence ``fold``. Fold 0 is the training part.

        Fold f > 0: the training part before the f-th cut-off (temporal), or that of users u with 1 + u % 5 != f.
        """
        data = self.dataset
        if self.train_lengths is not None:
            place = np.arange(len(data)) - data.indptr[data.user]
            train = place < self.train_lengths[data.user]
            return train if fold == 0 else train & (1 + data.user % FOLDS != fold)
        assert data.time is not None
        return data.time < (self.cutoffs[-2] if fold == 0 else self.cutoffs[fold - 1])

    def evidence(self, fold: int = 0) -> Evidence:
        """The evidence of ``fold``, built once."""
        if fold not in self._evidence:
            self._evidence[fold] = Evidence(self.dataset, self.evidence_mask(fold))
        return self._evidence[fold]


SPLITS: Registry[Callable[[Dataset], Split]] = Registry("split")


@SPLITS.register("temporal")
def temporal(dataset: Dataset, cutoffs: tuple[int, ...] | None = None) -> Split:
    """Global time 8:1:1. A cut never parts interactions of the same time, so shares are near, not exact.

    Args:
        dataset: must have times.
        cutoffs: start times (ms) of training blocks 1.., of valid and of test, ascending; None computes them, the
            training part in five blocks of equal size.

    Raises:
        ValueError: the dataset has no times, or too few distinct ones.
    """
    if dataset.time is None:
        raise ValueError(
            f"a temporal split needs times and dataset {dataset.name!r} has none; use split='leave_one_out'"
        )
    if cutoffs is None:
        ordered = np.sort(dataset.time)
        shares = [0.8 * k / FOLDS for k in range(1, FOLDS)] + [0.8, 0.9]
        cutoffs = tuple(_cut(ordered, share) for share in shares)
    valid, test = cutoffs[-2:]
    if not dataset.time.min() < valid < test <= dataset.time.max():
        raise ValueError(
            f"dataset {dataset.name!r} has too few distinct times for an 8:1:1 cut (valid would start at {valid}, test "
            f"at {test}, data spans {dataset.time.min()}..{dataset.time.max()}); use split='leave_one_out'"
        )
    return Split("temporal", dataset, cutoffs=cutoffs)


def _cut(ordered: NDArray[np.int64], share: float) -> int:
    """The time that starts the rest after about ``share`` of ``ordered``: the nearer edge of a run of equal times."""
    at = int(len(ordered) * share)
    time = ordered[at]
    before = int(np.searchsorted(ordered, time, side="left"))
    after = int(np.searchsorted(ordered, time, side="right"))
    return int(time if at - before <= after - at or after == len(ordered) else ordered[after])


@SPLITS.register("leave_one_out")
def leave_one_out(dataset: Dataset) -> Split:
    """Each user's last interaction is test, the one before is valid, the rest is training.

    Users with fewer than three interactions are training alone.
    """
    sizes = np.diff(dataset.indptr)
    return Split("leave_one_out", dataset, train_lengths=np.where(sizes >= 3, sizes - 2, sizes))
