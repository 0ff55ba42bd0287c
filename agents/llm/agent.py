"""A language model that plays: observations become tokens, sampled tokens become actions, and both are kept.

Rows stream: each is answered when its turn is over, while others still write. What an episode samples depends on the
seed and its own number alone. The record of an episode holds the very ids and log-probabilities that were sampled,
from which an algorithm learns.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agentrec_env.vector import RecVectorEnv
from agents.llm.chat import Chat
from agents.llm.engine import Engine, Generation
from agents.llm.policy import Policy
from agents.llm.sampling import Sampling
from agents.llm.transcript import TranscriptWriter
from agents.protocol import Observation, Overflow

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class _Episode:
    """What a row holds."""

    writer: TranscriptWriter
    last: Sequence[int] = ()
    """Sampled ids of the latest turn."""
    stop: str = ""
    """Why it ended."""
    open: bool = True
    """Whether the episode may go on."""


class LLMAgent:
    """A causal language model: the embedded one, or of a folder or the hub. Streams (`agents.protocol.StreamingAgent`).

    Args:
        model: "tiny" (the embedded model), a folder or a hub id; loaded at the first `bind`.
        policy: One that is loaded already, and perhaps trained between runs, in place of `model`.
        temperature: Of sampling; 0 takes the likeliest token.
        top_p: Sample among the likeliest tokens that together have this probability.
        max_turn_tokens: Tokens of one action; more end the episode as overflow.
        max_episode_tokens: Tokens of a whole episode, prompt included; likewise.
        device: By default a GPU where there is one.
        dtype: To load and compute in; by default bfloat16 on a GPU and float32 elsewhere.
        rows: Conversations held in memory at once; by default all.
        thinking: `enable_thinking` of chat templates that know it; None: their default.
        schemas: Show the tools' JSON schemas beside the rules, where the chat template does so in the environment's
            grammar of calls.
        observations: Role of messages with observations: "user" for chat templates without tool messages.

    Raises:
        ValueError: An argument that cannot be used.
    """

    def __init__(
        self,
        model: str | Path = "tiny",
        policy: Policy | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_turn_tokens: int = 256,
        max_episode_tokens: int = 4096,
        device: str | torch.device | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
        rows: int | None = None,
        thinking: bool | None = None,
        schemas: bool = True,
        observations: Literal["tool", "user"] = "tool",
    ) -> None:
        if dtype is not None and dtype not in _DTYPES:
            raise ValueError(f"dtype is one of {', '.join(_DTYPES)}, or None for that of the device; got {dtype!r}")
        if rows is not None and rows < 1:
            raise ValueError(f"rows is at least 1, or None for all; got {rows}")
        if policy is not None and device is not None:
            raise ValueError("device is where a model is loaded; a policy is on its device already: leave device out")
        self.model = model
        self.sampling = Sampling(temperature, top_p, max_turn_tokens, max_episode_tokens)
        self._policy = policy
        self._device = device
        self._dtype = dtype
        self._active = rows
        self._thinking = thinking
        self._schemas = schemas
        self._observations = observations
        self._envs: RecVectorEnv | None = None
        self._rules = ""
        self._chat: Chat | None = None
        self._engine: Engine | None = None
        self._capacity = 0
        self._seed = 0
        self._episodes: dict[int, _Episode] = {}
        self._ready: dict[int, str | Exception] = {}
        """Rows that are answered without the model."""
        self._kept: dict[int, tuple[int, str | Exception]] = {}
        """Row -> turn and answer that a failed `act` could not return."""
        self._figures = dict.fromkeys(("episodes", "turns", "tokens", "overflows", "seconds"), 0.0)

    def __repr__(self) -> str:
        return f"LLMAgent(model={str(self.model)!r})" if self._policy is None else "LLMAgent(policy=…)"

    @property
    def policy(self) -> Policy:
        """The model, loaded when it is first asked for.

        Raises:
            PolicyLoadError: It cannot be loaded; says what to do.
        """
        if self._policy is None:
            device = torch.device(self._device or ("cuda" if torch.cuda.is_available() else "cpu"))
            dtype = self._dtype or ("bfloat16" if device.type == "cuda" else "float32")
            self._policy = Policy.from_pretrained(self.model, dtype=dtype, device=device)
        return self._policy

    @property
    def metrics(self) -> dict[str, float]:
        """Episodes begun, turns, sampled tokens, overflows and seconds of sampling over the agent's life."""
        seconds = self._figures["seconds"]
        return self._figures | {"tokens_per_second": self._figures["tokens"] / seconds if seconds else 0.0}

    def bind(self, envs: RecVectorEnv) -> None:
        """Take over the rules and tools of `envs`, and load the model where that is not done.

        Raises:
            PolicyLoadError: The model cannot be loaded.
            ChatTemplateError: Its tokenizer cannot write conversations with tools.
            ValueError: The rules alone fill the model's context or the episode's budget.
        """
        if self._envs is envs:
            return
        rules = envs.scenario.rules
        tools = envs.tool_schemas if self._schemas and rules.max_calls else []
        policy = self.policy
        chat = Chat(policy.tokenizer, tools, self._thinking, self._observations)
        needed = len(chat.begin(rules.text, rules.text).ids)
        if needed >= self._limit:
            raise ValueError(
                f"the environment's rules alone take {needed:,} tokens, which leaves no room for a task: "
                f"{self._room()}. Or offer fewer tools (tools=[…] of the environment), or schemas=False"
            )
        self._envs, self._rules, self._chat, self._engine = envs, rules.text, chat, None

    def reset(self, num_envs: int, seed: int) -> None:
        """Forget all episodes, and take over the policy's weights where they changed.

        Raises:
            RuntimeError: `bind` was not called.
        """
        if self._chat is None:
            raise RuntimeError("call bind(envs) with the vector environment first, as agents.play does")
        if self._engine is None or self._capacity < num_envs:
            self._engine = Engine(
                self.policy.model,
                self.policy.tokenizer,
                num_envs,
                self.sampling,
                self._chat.stop_ids,
                self._chat.stops,
                dtype=None if self._dtype is None else _DTYPES[self._dtype],
                active=self._active,
            )
            self._capacity = num_envs
        else:
            for row in range(self._capacity):
                self._engine.release(row)
            self._engine.refresh()
        self._seed = seed
        self._episodes, self._ready, self._kept = {}, {}, {}

    def free(self) -> None:
        """Give the memory of keys and values back, which training has better use for; episodes under way go on."""
        if self._engine is not None:
            self._engine.free()

    def send(self, observations: Sequence[Observation], rows: Sequence[int], episodes: Sequence[int]) -> None:
        """Take observations of some rows; a row that cannot go on is answered with the reason, alone."""
        chat, engine = self._bound()
        begun: list[tuple[int, Any, int]] = []
        told: list[tuple[int, list[int]]] = []
        for observation, row, number in zip(observations, rows, episodes, strict=True):
            text = str(observation["text"])
            try:
                if int(observation["turn"]) == 0:
                    engine.release(row)
                    self._episodes.pop(row, None)
                    self._figures["episodes"] += 1
                    prompt = chat.begin(text, self._rules)
                    self._episodes[row] = _Episode(TranscriptWriter(prompt))
                    self._check(row, len(prompt.ids), "prompt")
                    begun.append((row, prompt, _seed(self._seed, number)))
                else:
                    episode = self._running(row)
                    ids = chat.observe(text, episode.last)
                    self._check(row, len(episode.writer) + len(ids), "conversation")
                    episode.writer.observed(ids)
                    told.append((row, ids))
            except Exception as error:  # noqa: BLE001 - one row's text must not cost the others theirs
                self._ready[row] = error
        if begun:
            engine.begin(*(list(column) for column in zip(*begun, strict=True)))
        if told:
            engine.extend(*(list(column) for column in zip(*told, strict=True)))

    def recv(self) -> tuple[list[str | Exception], list[int]]:
        """Wait until at least one row has ended its turn; rows in order."""
        _, engine = self._bound()
        answers, self._ready = self._ready, {}
        if not answers:
            begin = time.perf_counter()
            generations = engine.run()
            self._figures["seconds"] += time.perf_counter() - begin
            for generation in generations:
                answers[generation.row] = self._answer(generation)
        rows = sorted(answers)
        return [answers[row] for row in rows], rows

    def act(self, observations: Sequence[Observation], rows: Sequence[int]) -> list[str]:
        """Wait for all rows. As episodes have no numbers here, they are told apart by their prompts."""
        asked = [(o, row) for o, row in zip(observations, rows, strict=True) if not self._keeps(row, o)]
        numbers = [zlib.crc32(str(observation["text"]).encode("utf-8", "replace")) for observation, _ in asked]
        self.send([observation for observation, _ in asked], [row for _, row in asked], numbers)
        answers = {row: self._kept.pop(row)[1] for row in rows if row in self._kept}
        while len(answers) < len(rows):
            answers.update(zip(*reversed(self.recv()), strict=True))
        failed = next((answer for answer in answers.values() if isinstance(answer, Exception)), None)
        if failed is not None:
            if len(rows) > 1:  # each will be asked again alone
                turns = [int(observation["turn"]) for observation in observations]
                self._kept |= {row: (turn, answers[row]) for row, turn in zip(rows, turns, strict=True)}
            raise failed
        return [str(answers[row]) for row in rows]

    def record(self, row: int) -> dict[str, Any]:
        """The row's episode: `transcript`, sampled `tokens`, and the `stop` of its last turn; empty where none began.

        The row's memory is given free: it is called when the episode is over.
        """
        episode = self._episodes.get(row)
        if episode is None:
            return {}
        self._bound()[1].release(row)
        episode.open = False
        transcript = episode.writer.freeze()
        return {"transcript": transcript, "tokens": int(transcript.mask.sum()), "stop": episode.stop}

    @property
    def _limit(self) -> int:
        """Tokens of the longest conversation."""
        return min(self.policy.context, self.sampling.max_episode_tokens)

    def _bound(self) -> tuple[Chat, Engine]:
        if self._chat is None or self._engine is None:
            raise RuntimeError("call bind(envs) and reset(num_envs, seed) first, as agents.play does")
        return self._chat, self._engine

    def _running(self, row: int) -> _Episode:
        episode = self._episodes.get(row)
        if episode is None or not episode.open:
            raise RuntimeError(f"row {row} has no running episode: one begins with an observation of turn 0")
        return episode

    def _check(self, row: int, length: int, what: str) -> None:
        """Refuse what leaves no room for a sampled token."""
        if length >= self._limit:
            episode = self._episodes[row]
            full = self._limit < self.sampling.max_episode_tokens
            episode.open, episode.stop = False, "context" if full else "episode_budget"
            self._figures["overflows"] += 1
            raise Overflow(f"the {what} takes {length:,} tokens: {self._room()}")

    def _room(self) -> str:
        """What bounds a conversation, and what to do."""
        if self._limit < self.sampling.max_episode_tokens:
            return (
                f"the model's context is {self._limit:,}; take a model with a longer context, fewer candidates "
                "(num_candidates) or a shorter history (history_length)"
            )
        return f"max_episode_tokens is {self._limit:,}; raise it"

    def _keeps(self, row: int, observation: Observation) -> bool:
        """Whether the answer to `observation` is there already; one that is out of date is dropped."""
        if row in self._kept and self._kept[row][0] != int(observation["turn"]):
            del self._kept[row]
        return row in self._kept

    def _answer(self, generation: Generation) -> str | Exception:
        chat, engine = self._bound()
        episode = self._episodes[generation.row]
        episode.last, episode.stop = generation.ids.tolist(), generation.stop
        if len(generation.ids):
            episode.writer.sampled(generation.ids, generation.logprobs, generation.stop)
        self._figures["turns"] += 1
        self._figures["tokens"] += len(generation.ids)
        if generation.stop in ("stop", "end"):
            try:
                return chat.text(episode.last)
            except Exception as error:  # noqa: BLE001 - a decoder's failure is this row's alone
                return error
        engine.release(generation.row)
        episode.open = False
        self._figures["overflows"] += 1
        if generation.stop == "turn_budget":
            return Overflow(
                f"a turn did not end within {len(generation.ids):,} tokens; raise max_turn_tokens, or check that the "
                "model knows when to stop"
            )
        return Overflow(f"the conversation takes {len(episode.writer):,} tokens: {self._room()}")


def _seed(seed: int, episode: int) -> int:
    """Of the sampling of an episode: from the run's seed and the episode's number alone."""
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=(episode,))
    return int(sequence.generate_state(1, np.uint64)[0])
