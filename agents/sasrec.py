"""SASRec, the sequence model that the paper's collaborative tools and baseline table rest on, trained properly.

Self-attention over the user's items (Kang & McAuley, arXiv:1808.09781) with a softmax cross-entropy over the catalogue
in place of the original one-negative loss, which is what makes it competitive (Petrov & Macdonald, arXiv:2308.07192;
Klenitskiy & Vasilev, arXiv:2309.07602). AgenticRec (arXiv:2603.21613, tab. 2) reports SASRec at random level on CDs;
this one beats popularity.

A model is a function of one ``Evidence`` alone, early stopping included (on users' last items that are held out of the
evidence itself), so it is as-of by construction, for every fold.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from agentrec_env.data import evidence as evidence_module
from agentrec_env.data.evidence import Evidence
from agentrec_env.data.view import View
from agentrec_env.data.world import World
from agentrec_env.types import FloatArray, IntArray
from agents.models import load_model, save_model, source_digest
from agents.protocol import ScoringAgent

HELD_OUT_USERS = 2000
HELD_OUT_NEGATIVES = 99
START_SCALE = 0.4
"""Length of the first item vectors."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SASRecConfig:
    """How SASRec is built and trained."""

    dim: int = 64
    blocks: int = 2
    heads: int = 1
    dropout: float = 0.5
    max_length: int = 50
    """Longest input sequence, in items; longer histories are cut into windows for training."""
    epochs: int = 60
    patience: int = 3
    """Early stopping: checks without a better N@10 on held-out last items."""
    check_every: int = 2
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    full_softmax: int = 4000
    """Catalogues up to this size get the exact softmax, larger ones ``negatives`` sampled items."""
    negatives: int = 1024
    """Uniform negatives, shared by the sequences of a batch."""
    held_out: float = 0.1
    """Share of users whose last item is kept for early stopping."""
    seed: int = 0


class SASRecModel(nn.Module):
    """Causal self-attention over item embeddings; the score of an item is its embedding times the state, plus a bias.

    Item 0 of the tables is padding, so item i has row i + 1.
    """

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        self.item = nn.Embedding(num_items + 1, config.dim, padding_idx=0)
        self.bias = nn.Parameter(torch.zeros(num_items + 1))
        self.position = nn.Embedding(config.max_length, config.dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.item.weight, std=0.05)
        nn.init.normal_(self.position.weight, std=0.05)
        with torch.no_grad():
            self.item.weight[0] = 0

    @classmethod
    def untrained(cls, num_items: int, config: SASRecConfig) -> SASRecModel:
        """A model with weights by ``config.seed``; the global RNG stays where it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(num_items, config)

    @torch.no_grad()
    def start_from(self, evidence: Evidence) -> None:
        """Begin with the item vectors of the evidence's truncated SVD, and log popularity as bias.

        On catalogues as sparse as Amazon's this matters more than any other choice here: from random vectors, N@10 on
        CDs (leave-one-out, 19 uniform negatives) ends at .343 instead of .456.
        """
        vectors = torch.from_numpy(evidence.embedding[:, : self.config.dim])
        self.item.weight[1:, : vectors.shape[1]] = START_SCALE * vectors
        bias = np.log1p(evidence.popularity)
        self.bias[1:] = torch.from_numpy(bias - bias.mean())

    def forward(self, sequences: Tensor) -> Tensor:
        """States float32 [B, T, d] after each of int64 [B, T] rows (item + 1; padding 0 at the end)."""
        x = self.item(sequences) * self.config.dim**0.5 + self.position.weight[: sequences.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.norm(x)
        return states


class _Block(nn.Module):
    """Pre-norm attention and a two-layer network. Padding stands at the end, so the causal mask alone suffices."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.heads, self.rate = config.heads, config.dropout
        self.norm_attention = nn.LayerNorm(config.dim)
        self.norm_hidden = nn.LayerNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.hidden = nn.Linear(config.dim, 2 * config.dim)
        self.back = nn.Linear(2 * config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, dim)))
        out: Tensor = x + self.dropout(self.back(functional.gelu(self.hidden(self.norm_hidden(x)))))
        return out


def train(evidence: Evidence, config: SASRecConfig) -> SASRecModel:
    """Fit SASRec on the sequences of ``evidence``; equal inputs give equal weights, and no global RNG moves."""
    generator = np.random.default_rng(config.seed)
    data = evidence.data
    sizes = np.diff(data.indptr)
    long_enough = np.flatnonzero(sizes >= 3)
    count = min(int(len(long_enough) * config.held_out), HELD_OUT_USERS)
    held_out = np.sort(generator.choice(long_enough, size=count, replace=False))
    ends = data.indptr[1:].copy()
    ends[held_out] -= 1
    windows = [
        data.item[max(start, end - config.max_length - 1) : end].astype(np.int64) + 1
        for first, last in zip(data.indptr[:-1], ends, strict=True)
        for end in range(last, first + 1, -config.max_length)
        for start in (first,)
    ]
    probe = _Probe(evidence, held_out, config, generator)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = SASRecModel(data.num_items, config)
        model.start_from(evidence)
        _optimise(model, windows, probe, config, generator)
    return model.eval()


def _optimise(
    model: SASRecModel,
    windows: list[NDArray[np.int64]],
    probe: _Probe,
    config: SASRecConfig,
    generator: np.random.Generator,
) -> None:
    """AdamW until the held-out N@10 stops rising; the best weights are left in ``model``."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    num_items = model.item.num_embeddings - 1
    best, best_weights, waited = probe.ndcg(model), _copy(model), 0
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = 0.0
        for batch in _batches(windows, config.batch_size, generator):
            inputs, targets = batch[:, :-1], batch[:, 1:]
            states = model(inputs)[targets > 0]
            loss = _loss(model, states, targets[targets > 0], num_items, config, generator)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += float(loss.detach())
        if epoch % config.check_every:
            continue
        score = probe.ndcg(model)
        _log.debug("SASRec epoch %d: loss %.3f, held-out N@10 %.4f", epoch, total, score)
        if score > best:
            best, best_weights, waited = score, _copy(model), 0
        elif (waited := waited + 1) >= config.patience:
            break
    model.load_state_dict(best_weights)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _loss(
    model: SASRecModel,
    states: Tensor,
    targets: Tensor,
    num_items: int,
    config: SASRecConfig,
    generator: np.random.Generator,
) -> Tensor:
    """Cross-entropy of int64 [M] ``targets`` under float32 [M, d] ``states``, over all items or a uniform sample."""
    if num_items <= config.full_softmax:
        logits = states @ model.item.weight[1:].T + model.bias[1:]
        return functional.cross_entropy(logits, targets - 1)
    sample = torch.from_numpy(generator.integers(1, num_items + 1, size=config.negatives))
    positive = (states * model.item(targets)).sum(-1, keepdim=True) + model.bias[targets][:, None]
    negative = states @ model.item(sample).T + model.bias[sample] + float(np.log(num_items / config.negatives))
    negative = negative.masked_fill(sample == targets[:, None], -torch.inf)
    logits = torch.cat([positive, negative], dim=1)
    return functional.cross_entropy(logits, torch.zeros(len(targets), dtype=torch.long))


def _batches(windows: list[NDArray[np.int64]], size: int, generator: np.random.Generator) -> Iterator[Tensor]:
    """Padded batches of similar lengths, in random order."""
    order = generator.permutation(len(windows))
    lengths = np.array([len(window) for window in windows])
    chunk = 16 * size
    batches = []
    for start in range(0, len(order), chunk):
        part = order[start : start + chunk]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[at : at + size] for at in range(0, len(part), size)]
    for at in generator.permutation(len(batches)):
        yield pad([windows[i] for i in batches[at]])


def pad(sequences: list[NDArray[np.int64]]) -> Tensor:
    """int64 [B, T]: ``sequences`` with zeros at the end."""
    padded = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded)


class _Probe:
    """N@10 of held-out last items against uniform negatives: what early stopping watches."""

    def __init__(
        self,
        evidence: Evidence,
        users: NDArray[np.int64],
        config: SASRecConfig,
        generator: np.random.Generator,
    ) -> None:
        data = evidence.data
        ends = data.indptr[users + 1] - 1
        starts = np.maximum(data.indptr[users], ends - config.max_length)
        self.histories = [data.item[a:b].astype(np.int64) + 1 for a, b in zip(starts, ends, strict=True)]
        negatives = generator.integers(data.num_items, size=(len(users), HELD_OUT_NEGATIVES))
        self.pools = torch.from_numpy(np.column_stack([data.item[ends], negatives]).astype(np.int64) + 1)

    @torch.no_grad()
    def ndcg(self, model: SASRecModel) -> float:
        model.eval()
        gains = []
        for start in range(0, len(self.histories), 256):
            histories = self.histories[start : start + 256]
            pools = self.pools[start : start + 256]
            scores = pool_scores(model, histories, pools)
            rank = 1 + (scores[:, 1:] > scores[:, :1]).sum(1)
            gains.append(torch.where(rank <= 10, 1 / torch.log2(rank + 1.0), 0.0))
        return float(torch.cat(gains).mean()) if gains else 0.0


def pool_scores(model: SASRecModel, histories: list[NDArray[np.int64]], pools: Tensor) -> Tensor:
    """float32 [B, C]: scores of int64 [B, C] rows after each of B histories."""
    lengths = torch.tensor([len(history) for history in histories])
    states = model(pad(histories))[torch.arange(len(histories)), lengths - 1]
    scores: Tensor = (model.item(pools) @ states[:, :, None]).squeeze(-1) + model.bias[pools]
    return scores


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: sums in one order on every machine, and no spinning where several processes share cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fitted(evidence: Evidence, config: SASRecConfig | None = None) -> SASRecModel:
    """The model of ``evidence``: from memory, from the cache on disk, or trained now."""
    config = config or SASRecConfig()
    name = f"sasrec {config!r}"
    if name not in evidence.cache:
        key = _key(evidence, config)
        model = SASRecModel.untrained(evidence.data.num_items, config)
        data = load_model("sasrec", key)
        if data is None:
            model = train(evidence, config)
            save_model("sasrec", key, safetensors.torch.save(model.state_dict()))
        else:
            model.load_state_dict(safetensors.torch.load(data))
        evidence.cache[name] = model.eval()
    model = evidence.cache[name]
    assert isinstance(model, SASRecModel)
    return model


def item_embeddings(evidence: Evidence, config: SASRecConfig | None = None) -> NDArray[np.float32]:
    """float32 [I, d]: SASRec's item vectors, for tools that look for neighbours in its space (AgenticRec, tab. 1)."""
    return fitted(evidence, config).item.weight.detach().numpy()[1:]


def signal(view: View, items: IntArray) -> FloatArray:
    """float64 [M]: SASRec's score as a signal, ``"agents.sasrec:signal"`` for fusion and tools."""
    return _scores(fitted(view.evidence), view, items)


def _scores(model: SASRecModel, view: View, items: IntArray) -> FloatArray:
    history = view.known[-model.config.max_length :] + 1
    with one_thread(), torch.inference_mode():
        state = model(torch.from_numpy(history)[None])[0, -1].double().numpy()
    weight, bias = model.item.weight.detach().numpy(), model.bias.detach().numpy()
    # A sum per item, not a matrix product: the last bit of a score must not depend on the order of items.
    return np.asarray((weight[items + 1] * state).sum(axis=1) + bias[items + 1], dtype=np.float64)


def _key(evidence: Evidence, config: SASRecConfig) -> str:
    digest = hashlib.sha256(
        json.dumps([asdict(config), torch.__version__, source_digest([__file__, evidence_module.__file__])]).encode()
    )
    digest.update(np.int64(evidence.data.num_items).tobytes())
    digest.update(evidence.data.indptr.tobytes() + evidence.data.item.tobytes())
    return digest.hexdigest()[:16]


class SASRec(ScoringAgent):
    """Sorts by SASRec's score.

    Args:
        seed: of initial weights, batches and dropout.
        **settings: other fields of :class:`SASRecConfig`.
    """

    def __init__(self, seed: int = 0, **settings: Any) -> None:
        self.config = SASRecConfig(seed=seed, **settings)
        self.metrics: dict[str, float] = {}

    def fit(self, world: World) -> None:
        """Train on the training part of ``world``, or take the kept weights."""
        begin = time.perf_counter()
        fitted(world.split.evidence(0), self.config)
        self.metrics = {"fit_seconds": time.perf_counter() - begin}

    def scores(self, view: View, items: IntArray) -> FloatArray:
        return _scores(fitted(view.evidence, self.config), view, items)
