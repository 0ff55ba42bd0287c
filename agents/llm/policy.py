"""A causal language model as a policy to train: log-probabilities of what was sampled, and nothing else computed.

It takes any Hugging Face causal model apart into decoder and output layer. The decoder reads a pack, in which common
heads stand once; the output layer sees sampled positions only. Architectures that cannot read a pack get padded rows.
A policy that is made checks on a few tokens that both ways agree with the model's own forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from agents.llm import lora as adapters
from agents.llm.attention import longest
from agents.llm.card import CARD, PLAIN, Card, kept, origin_of, written
from agents.llm.folder import replace_folder
from agents.llm.hub import MARKS, push_to_hub
from agents.llm.likelihood import token_scores
from agents.llm.loading import (
    DTYPES,
    PolicyLoadError,
    adapter_base,
    has_tokenizer,
    load_model,
    load_tokenizer,
    locate,
    no_bars,
    silence_dropout,
)
from agents.llm.lora import LoRA
from agents.llm.packing import Pack, Span, packs
from agents.llm.probe import check_model, enable_sharing
from agents.llm.transcript import Transcript

VALUE_HEAD = "value_head.safetensors"
"""File of the value head, beside the weights."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What a policy says about the N sampled tokens of a pack, in the order of `pack.index`."""

    logprobs: Tensor
    """float32 [N]: log-probability of each token given those before it, at the temperature asked for."""
    entropy: Tensor
    """float32 [N]: entropy in nats of the distribution that it was drawn from."""
    values: Tensor | None
    """float32 [N]: value of the tokens before it; None without a value head."""


class Policy(nn.Module):
    """A causal language model, its tokenizer, and perhaps an adapter and a value head.

    Args:
        model: A transformers causal language model, or a peft model of one; its dropout is set to 0.
        tokenizer: Its tokenizer.
        mixed: Multiply in bfloat16, but keep the weights and the output layer in float32.
        value_head: Have a linear value head, which begins at 0.
        gradient_checkpointing: Compute each layer again on the way back: less memory, about a third more time.

    Raises:
        PolicyLoadError: The model is not causal, or has no decoder and output layer that stand apart.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mixed: bool = False,
        value_head: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        silence_dropout(model)
        self.model = model
        self.tokenizer = tokenizer
        self.mixed = mixed
        self.adapted = hasattr(model, "disable_adapter") and hasattr(model, "peft_config")
        config = self.core.config.get_text_config()
        self.vocabulary: int = self.core.get_input_embeddings().weight.shape[0]
        self.context: int = getattr(config, "max_position_embeddings", None) or 2**31
        self._kept: dict[str, Tensor] | None = None
        check_model(self)
        self.shares = enable_sharing(self)
        """Whether the decoder reads packs; otherwise it gets padded rows (`packs(..., share=False)` pads least)."""
        if gradient_checkpointing:
            enable = getattr(self.core, "activation_checkpointing_enable", None)  # its name from transformers 5.23 on
            (enable or self.core.gradient_checkpointing_enable)({"use_reentrant": False})
        self.place: Path | None = None
        """Folder that it was loaded from."""
        self.origin: str | None = None
        """Id on the hub of the model that it was trained from, for its card."""
        self.value_head: nn.Linear | None = None
        if value_head:
            width = self.core.get_output_embeddings().weight.shape[1]
            self.value_head = nn.Linear(width, 1, device="meta").to_empty(device=self.device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.train()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "tiny",
        *,
        lora: LoRA | None = None,
        dtype: Literal["float32", "mixed", "bfloat16"] = "float32",
        device: str | torch.device | None = None,
        value_head: bool = False,
        gradient_checkpointing: bool = False,
    ) -> Policy:
        """A policy from the embedded model, a folder or the hub.

        Args:
            source: "tiny", a folder (of `save_pretrained`, say, adapters too), or a hub id.
            lora: Put this adapter on it and train that alone; None: train all weights, or the adapter of the folder.
            dtype: "float32"; "mixed": float32 weights, products in bfloat16; "bfloat16": all, for large models on GPUs.
            device: "cuda" where there is one, else "cpu", by default.
            value_head: Have a value head: the folder's, or a fresh one.
            gradient_checkpointing: Save memory for time.

        Raises:
            PolicyLoadError: With what was given, what is allowed and what to do.
        """
        if dtype not in DTYPES:
            raise PolicyLoadError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        place = locate(source)
        base = adapter_base(place)
        if base is not None and lora is not None:
            raise PolicyLoadError(f"{place} holds an adapter already, which will be trained on: leave lora out")
        whole = place if base is None else locate(base)
        model: Any = load_model(whole, dtype, where)
        if base is not None:
            model = adapters.load_adapter(model, place)
        elif lora is not None:
            known = str(source if source == "tiny" or not Path(source).is_dir() else place)
            model = adapters.attach(model, lora, known)
        policy = cls(
            model,
            load_tokenizer(place if has_tokenizer(place) else whole),
            mixed=dtype == "mixed",
            value_head=value_head,
            gradient_checkpointing=gradient_checkpointing,
        )
        if policy.value_head is not None and (place / VALUE_HEAD).is_file():
            policy.value_head.load_state_dict(load_file(place / VALUE_HEAD))
        local = source == "tiny" or Path(source).expanduser().is_dir()
        policy.place = place
        policy.origin = origin_of(place) if local else str(source)
        return policy

    def forward(self, pack: Pack, temperature: float = 1.0, entropy_gradient: bool = False) -> Scores:
        """Score the sampled tokens of a pack.

        Args:
            pack: From `packs`.
            temperature: Logits are divided by it; that of sampling gives the probabilities of the sampler.
            entropy_gradient: Whether the entropy can be differentiated.

        Raises:
            ValueError: A transcript longer than the context, or ids that the model does not have.
        """
        if not temperature > 0:
            raise ValueError(f"temperature is positive here (sampling at 0 is scored at 1); got {temperature}")
        most = int(pack.positions.max()) + 1
        if most > self.context:
            raise ValueError(
                f"a transcript of {most} tokens exceeds the model's context of {self.context}; sample with a smaller "
                "max_episode_tokens"
            )
        if int(pack.ids.max()) >= self.vocabulary or int(pack.target.max()) >= self.vocabulary:
            raise ValueError(f"the pack has ids beyond the model's {self.vocabulary}: it is of another tokenizer")
        pack = pack.to(self.device)
        hidden = self._hidden(pack)
        logprobs, entropy = token_scores(
            hidden, pack.target, self.logits, self.vocabulary, temperature, entropy_gradient
        )
        values = None if self.value_head is None else self.value_head(hidden.float()).sum(1)
        return Scores(logprobs, entropy, values)

    @torch.no_grad()
    def score(
        self, transcripts: Sequence[Transcript], max_tokens: int = 16_384, temperature: float = 1.0
    ) -> list[NDArray[np.float32]]:
        """Log-probabilities float32 [T] of each transcript, 0 where a token was not sampled; no gradient."""
        result = [np.zeros(len(transcript), np.float32) for transcript in transcripts]
        for pack in packs(transcripts, max_tokens, self.shares):
            logprobs = self(pack, temperature).logprobs.cpu().numpy()
            for (number, place), value in zip(pack.index.tolist(), logprobs, strict=True):
                result[number][place] = value
        return result

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The weights to train by name: those of the adapter where there is one, and the value head's."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def keep_reference(self) -> None:
        """Keep a copy of the trained weights of the model as they are now, as the reference from here on."""
        self._kept = {
            name: weight.detach().clone() for name, weight in self.model.named_parameters() if weight.requires_grad
        }

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the policy scores as the reference does: as kept, or else with its adapter off. No gradients.

        Raises:
            RuntimeError: All weights are trained and none were kept.
        """
        if self._kept is None and not self.adapted:
            raise RuntimeError("all weights are trained, so the reference is a copy: call keep_reference() first")
        with torch.no_grad():
            if self._kept is None:
                with self.model.disable_adapter():
                    yield
                return
            pairs = [(w, self._kept[name]) for name, w in self.model.named_parameters() if name in self._kept]
            _exchange(pairs)
            try:
                yield
            finally:
                _exchange(pairs)

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: Literal["float32", "bfloat16"] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        card: Card | None = None,
    ) -> None:
        """Write a folder that `from_pretrained`, transformers and peft read: weights (of the adapter alone, with one),
        tokenizer, value head, and a model card.

        It is written whole or not at all, and replaces an older one.

        Args:
            folder: Where to.
            dtype: Of the weights in the file; as they are by default.
            weights: By the names of `state_dict`, in place of the policy's own, which may be in pieces.
            card: What its README.md says; None: what the folder that it came from says, where the weights are still
                the same, and else that nothing is known of it.

        Raises:
            FileExistsError: The folder holds something that is no model.
        """
        model = self.model if dtype is None else copy.deepcopy(self.model).to(DTYPES[dtype])
        with replace_folder(Path(folder), MARKS) as fresh:
            options: dict[str, Any] = {"save_embedding_layers": False} if self.adapted else {}
            if weights is not None:
                options["state_dict"] = _below("model.", weights)
            with no_bars():
                model.save_pretrained(fresh, **options)
            self.tokenizer.save_pretrained(fresh)
            if self.value_head is not None:
                head = self.value_head.state_dict() if weights is None else _below("value_head.", weights)
                save_file(head, fresh / VALUE_HEAD)
            same = None if card is not None else kept(self.place, fresh)
            base = str(self.model.peft_config["default"].base_model_name_or_path) if self.adapted else ""
            text = same or written(card or PLAIN, self.origin, base)
            (fresh / CARD).write_text(text, encoding="utf-8")

    def push_to_hub(self, repo_id: str, *, card: Card | None = None, **options: Any) -> str:
        """Save it and upload that; see `agents.llm.hub.push_to_hub`, which uploads a folder that is there already.

        Args:
            repo_id: "name" or "organisation/name".
            card: As of `save_pretrained`.
            options: private, token, commit_message, revision, create_pr, ….

        Returns:
            The address of the commit.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "policy", card=card)
            return push_to_hub(Path(folder) / "policy", repo_id, **options)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """What the decoder multiplies in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.mixed else nullcontext()

    @property
    def core(self) -> Any:
        """The transformers model, whose layers hold the adapter's where there is one."""
        return self.model.get_base_model() if self.adapted else self.model

    def _hidden(self, pack: Pack) -> Tensor:
        """[N, E]: the decoder's states that predict the scored tokens."""
        window = getattr(self.core.config.get_text_config(), "sliding_window", None)
        if self.shares and (window is None or longest(pack.spans) <= window):
            return self.decode(pack.ids, pack.positions, pack.spans, pack.source).index_select(0, pack.source)
        rows = [torch.cat([pack.ids[start:stop] for start, stop in row]) for row in pack.rows]
        # Padding stands behind each row, where nothing that is read attends to it.
        states = self.decode(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        return states[pack.row, pack.index[:, 1] - 1]

    def decode(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        spans: Sequence[Span] | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """[T, E] of a pack's ids [T], of which those at `source` are right and all by default; or [M, L, E] of padded
        ids [M, L]."""
        decoder = self.core.get_decoder()
        with self.arithmetic():
            if spans is None:
                return decoder(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[no-any-return]
            assert positions is not None
            # On a CPU: a GPU may lose more by many small blocks than it saves.
            wanted = torch.unique(source) if source is not None and ids.device.type == "cpu" else None
            states = decoder(
                input_ids=ids[None],
                position_ids=positions[None],
                attention_mask=torch.ones((1, 1, 1, 1), device=ids.device),  # taken as made already; not read
                use_cache=False,
                spans=spans,
                wanted=wanted,
            ).last_hidden_state
            return states[0]  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [n, V], with what some families do to them behind the output layer."""
        config = self.core.config.get_text_config()
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.core.get_output_embeddings()(hidden.float() if self.mixed else hidden).float()
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / scale
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits  # type: ignore[no-any-return]


def _exchange(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Swap what the tensors of each pair hold; in place, as a piece of a weight is read by other processes too."""
    for one, other in pairs:
        held = one.detach().clone()
        one.copy_(other)
        other.copy_(held)


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
