"""A scripted rollout that every contender plays alike: tokenizer, prompts, tool texts, and a model with a script.

A random model never writes a tool call, and contenders that sample different lengths do different work. So the last
layer of an otherwise random Qwen3 model holds a chain of tokens: after the header of its turn it writes a thought, a
call of the tool and the end of the turn, then the next turn the same. All its matrices are dense and all its arithmetic
is done as for any other model of that shape; only the ids that come out are known beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.chat_template_utils import get_json_schema

from agentrec_env.text import neutralise
from agents.llm.chat import Chat, Prompt

VOCABULARY = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THOUGHT = 20
"""Scripted tokens between <think> and </think>."""
SCRIPT = (
    "<think>",
    *(f" thought{place}" for place in range(THOUGHT)),
    "</think>",
    "<tool_call>",
    '{"name": "look", ',
    '"arguments": ',
    '{"page": 1}}',
    "</tool_call>",
    "<|im_end|>",
)
"""Tokens of a turn; each stands once, so that the last token alone says which one comes next."""

# The grammar of Qwen3, without what rewrites earlier turns.
TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n\\nYou may call one or more functions.\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within' }}
    {{- ' <tool_call></tool_call> XML tags.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '<tool_call>{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) }}
            {{- '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""How transformers reads a turn in this grammar (its `response_template`); TRL finds tool calls with it."""


@dataclass(frozen=True)
class Shape:
    """A Qwen3 architecture."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int = VOCABULARY

    @property
    def parameters(self) -> int:
        """Weights in all."""
        layer = self.layer_matrices + 2 * self.hidden + 2 * self.head_dim
        return self.layers * layer + self.hidden * (self.vocabulary + 1)

    @property
    def layer_matrices(self) -> int:
        """Weights of the matrices of one layer."""
        heads, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.hidden * (2 * heads + 2 * keys + 3 * self.intermediate)

    @property
    def config(self) -> Qwen3Config:
        """Of transformers; input and output embeddings are tied."""
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )


SHAPES: Mapping[str, Shape] = {
    "tiny": Shape(64, 2, 4, 2, 16, 128, 1024),
    "1m": Shape(128, 3, 4, 2, 32, 384),
    "3m": Shape(192, 5, 6, 2, 32, 576),
    "8m": Shape(256, 9, 8, 2, 32, 768),
    "0.6b": Shape(1024, 28, 16, 8, 128, 3072, 151_936),
}
"""By name; "0.6b" is the shape of Qwen3-0.6B."""


def look(page: int) -> str:
    """Look at a page of what is known about the candidates.

    Args:
        page: Number of the page.
    """
    return f"page {page}"


@dataclass(frozen=True)
class Plan:
    """How much is played."""

    groups: int = 8
    members: int = 8
    """Rows of a group: all begin with the same prompt."""
    prompt: int = 1024
    """Tokens of each prompt."""
    shared: int = 512
    """Tokens of the system message, the same in all prompts, about."""
    observation: int = 250
    """Tokens of a tool's answer: the mean; each is drawn within a fifth of it."""
    turns: int = 3
    """Turns with a tool call that is answered; one more turn follows."""

    @property
    def rows(self) -> int:
        """Conversations in all."""
        return self.groups * self.members

    @property
    def longest(self) -> int:
        """An upper bound of a transcript's tokens."""
        return self.prompt + (self.turns + 1) * 2 * len(SCRIPT) + self.turns * (self.observation * 6 // 5 + 40)


class Workload:
    """Texts and ids of a plan, the same for the same seed.

    Args:
        plan: How much.
        vocabulary: Tokens of the tokenizer, at most; the model may have more.
        seed: Of the words.
    """

    def __init__(self, plan: Plan, vocabulary: int = VOCABULARY, seed: int = 0) -> None:
        self.plan = plan
        self.tokenizer = make_tokenizer(min(vocabulary, VOCABULARY))
        self.schema: dict[str, Any] = get_json_schema(look)
        self.chat = Chat(self.tokenizer, tools=[self.schema])
        generator = np.random.default_rng(seed)
        self.rules = _longest(
            _words(plan.shared, generator), lambda rules: self.chat.begin(f"a\n\n{rules}", rules).shared, plan.shared
        )
        """The system message."""
        self.tasks = tuple(self._fill(generator) for _ in range(plan.groups))
        """User messages, one a group."""
        sizes = generator.integers(plan.observation * 4 // 5, plan.observation * 6 // 5 + 1, (plan.rows, plan.turns))
        self.observations = tuple(
            tuple(_tokens_of_text(self.tokenizer, int(size), generator) for size in row) for row in sizes
        )
        """Answers of the tool: [rows][turns]."""
        self.rewards: tuple[float, ...] = tuple(generator.random(plan.rows).tolist())
        """What each conversation is worth, 0 to 1 [rows]: all different, so that none is left out of an update."""

    def prompts(self) -> list[Prompt]:
        """One a row, written by `Chat`."""
        made = [self.chat.begin(f"{task}\n\n{self.rules}", self.rules) for task in self.tasks]
        return [prompt for prompt in made for _ in range(self.plan.members)]

    @cached_property
    def script(self) -> tuple[int, ...]:
        """Ids of a turn."""
        known = self.tokenizer.get_vocab()
        return tuple(known[token] for token in SCRIPT)

    @property
    def end(self) -> int:
        """Id of the token that ends a turn."""
        return self.script[-1]

    @property
    def start(self) -> int:
        """Id of the last token before a turn."""
        return self.prompts()[0].ids[-1]

    def transcripts(self) -> list[list[int]]:
        """The ids that every contender must end with, prompts included: [rows][T]."""
        made = []
        for prompt, answers in zip(self.prompts(), self.observations, strict=True):
            ids = [*prompt.ids, *self.script]
            for answer in answers:
                ids += [*self.chat.observe(answer, self.script), *self.script]
            made.append(ids)
        return made

    def messages(self, group: int) -> list[dict[str, str]]:
        """The prompt of a group as messages."""
        return [{"role": "system", "content": self.rules}, {"role": "user", "content": self.tasks[group]}]

    def _fill(self, generator: np.random.Generator) -> str:
        def length(task: str) -> int:
            return len(self.chat.begin(f"{task}\n\n{self.rules}", self.rules).ids)

        text = _longest(_words(self.plan.prompt, generator), length, self.plan.prompt)
        text += " a" * (self.plan.prompt - length(text))
        if (made := length(text)) != self.plan.prompt:
            raise ValueError(f"a prompt of {self.plan.prompt} tokens was asked for and {made} came out; take more")
        return text


def scripted_model(
    shape: Shape,
    workload: Workload,
    *,
    certainty: float = 16.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Any:
    """A random Qwen3 model that writes `workload.script` turn after turn.

    Token embeddings have length 1 and stay recognisable in the residual stream. The first rows of the last layer's MLP
    each know one token of the chain and turn its embedding into that of the next, so that the tied output layer gives
    the next token the highest logit. The rest of the weights are random, so logits depend on the whole context.

    Args:
        shape: The architecture; its last MLP must be at least as wide as the script.
        workload: Has the script.
        certainty: Weight of the last norm. At 16 no other token is ever sampled at temperature 1; at 1 and below
            the next token is only the likeliest one, and its log-probability tells contexts apart.
        seed: Of the weights, made on the CPU in float32 whatever `dtype` and `device` are.
        dtype: Of the weights.
        device: Where the model is.
    """
    chain = (workload.start, *workload.script)
    if shape.intermediate < len(chain) - 1:
        raise ValueError(f"the script needs an MLP of {len(chain) - 1} rows, the shape has {shape.intermediate}")
    model: Any = Qwen3ForCausalLM(shape.config)
    model = model.to(dtype).to(device).eval()
    model.set_attn_implementation("sdpa")
    generator = torch.Generator().manual_seed(seed)
    hidden = shape.hidden
    sublayer = {"o_proj.weight": (1.6 / shape.layers) ** 0.5, "down_proj.weight": (0.1 / shape.layers) ** 0.5}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                # Queries and keys above 1 make attention choose: a flat mean over 1,000 tokens would say little.
                parameter.fill_(2.0 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0)
                continue
            weights = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
            for end, length in sublayer.items():
                if name.endswith(end):  # it adds a vector of about this length to an embedding of length 1
                    weights *= length / hidden**0.5
            parameter.copy_(weights)
        embedding = model.model.embed_tokens.weight
        known = torch.nn.functional.normalize(embedding[list(chain)].float(), dim=1)
        embedding[list(chain)] = known.to(dtype)
        now, following = known[:-1], known[1:]
        mlp = model.model.layers[-1].mlp
        rows = len(now)
        mlp.gate_proj.weight[:rows] = now.to(dtype)
        # An embedding in the stream has length hidden**0.5 after the norm: its own row gives hidden, made 1 here.
        mlp.up_proj.weight[:rows] = (now / hidden).to(dtype)
        mlp.down_proj.weight[:, :rows] = (2.5 * following - now).T.to(dtype)
        model.model.norm.weight.fill_(certainty)
    model.tie_weights()
    return model


@cache
def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of pseudo-words with the script's tokens and the chat format's; its template is `TEMPLATE`."""
    words = _words(5 * vocabulary, np.random.default_rng(0))
    added = [token for token in SCRIPT if token not in SPECIAL]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL) - len(added),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    formal = [TEMPLATE, json.dumps(get_json_schema(look))] * 50
    tokenizer.train_from_iterator([" ".join(words), " a" * 100, *formal], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token=SPECIAL[0], padding_side="left"
    )
    made.chat_template = TEMPLATE
    made.response_template = RESPONSE
    return made


@cache
def _lexicon() -> tuple[list[str], NDArray[np.float64]]:
    """Pseudo-words of two to four syllables, and how frequent each is: a few very, as in a language."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    generator = np.random.default_rng(1)
    drawn = generator.integers(len(syllables), size=(3000, 4)).tolist()
    lengths = generator.integers(2, 5, 3000).tolist()
    words = ["".join(syllables[place] for place in row[:n]) for row, n in zip(drawn, lengths, strict=True)]
    weights = 1.0 / np.arange(1, len(words) + 1)
    return words, weights / weights.sum()


def _words(count: int, generator: np.random.Generator) -> list[str]:
    words, weights = _lexicon()
    return [words[place] for place in generator.choice(len(words), count, p=weights)]


def _longest(words: Sequence[str], length: Callable[[str], int], most: int) -> str:
    """The first so many words that `length` is at most `most`."""
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if length(" ".join(words[:middle])) <= most:
            low = middle
        else:
            high = middle - 1
    if not low:
        raise ValueError(f"{most} tokens do not hold the tools' schema and a word ({length(words[0])}); take more")
    return " ".join(words[:low])


def _tokens_of_text(tokenizer: Callable[..., Any], count: int, generator: np.random.Generator) -> str:
    """Text of `count` tokens, to within a few."""
    words = _words(count, generator)
    ids: Sequence[Sequence[int]] = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    taken = int(np.searchsorted(np.cumsum([len(part) for part in ids]), count, side="right"))
    return neutralise(" ".join(words[:taken]))
