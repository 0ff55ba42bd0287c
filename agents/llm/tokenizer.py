"""The tokenizer of the embedded policy: a byte-level BPE trained on what the environment writes.

A general tokenizer spends five tokens on a sign such as `[12]=5` and cuts item names to pieces. This one splits text so
that a candidate's number is one token wherever it stands, in a prompt, in a tool's list and in an answer; a strength
joins the brackets around it (`[`, `12`, `]=5 [`); and frequent phrases of several words become one token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agentrec_env.actions import render
from agentrec_env.tools.names import title
from agentrec_env.types import Ranking, ToolCall
from agentrec_env.vector import RecVectorEnv

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Padding, start and end of a message."""
ADDED = tuple(f"<{slash}{tag}>" for tag in ("think", "tool_call", "answer", "observation") for slash in ("", "/"))
"""Tags of the action grammar: one token each, and kept by decoding."""

_PIECES = (
    r"\]=\d(?!\d)(?: \[)?",  # [12]=5 [3]=4: the strength with the brackets around it, the numbers alone
    r" ?[a-z]+:[\d?](?![\w.])",  # popular:5 embedding:3 [12]: a sign with its strength
    r"\]\n",
    r"\] \[",
    r": \[",
    r"\\boxed\{\[?",
    r'\{"name": "',
    r'", "arguments": \{"?',
    r'": "',
    r'"?\}\}',
    r"[A-Za-z]+(?:_[A-Za-z]+)+",
    r"\d{1,3}",
    r"[^\S\n]*\n+(?:- )?",
    r" ?\p{L}+(?:[ '’-]\p{L}+)*(?: (?=\d))?",
    r" ?[^\s\p{L}\p{N}]+ ?",
    r"\s+",
)
"""Inside of each the BPE may join; never across."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""ChatML without a word of its own: the environment's rules, which become the system message, tell of the tools."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096, numbers: int = 99) -> PreTrainedTokenizerFast:
    """A byte-level BPE over `texts`.

    Args:
        texts: What the environment shows and reads.
        vocab_size: Tokens in all, the special and added ones among them.
        numbers: 0 to this are one token each, however rare they are in `texts`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(_PIECES)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL) - len(ADDED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_grammar(texts, numbers), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def environment_texts(envs: RecVectorEnv, episodes: int, seed: int = 0) -> Iterator[str]:
    """What an agent reads and writes in `episodes` episodes of `envs` in which every tool is called once, in a random
    order, until no calls are left.

    Args:
        envs: One row is used.
        episodes: How many tasks, drawn at random with fresh candidates.
        seed: Of the tasks.
    """
    session, rules = envs.session(0), envs.scenario.rules
    generator = np.random.default_rng(seed)
    mask = np.zeros(envs.num_envs, np.bool_)
    mask[0] = True
    for _ in range(episodes):
        envs.reset(seed=[int(generator.integers(2**31))] * envs.num_envs, options={"reset_mask": mask})
        yield session.prompt
        view = session.view
        names = [title(view.items, int(item)) for item in view.history[-1:]] + ["[1]"]
        for name in generator.permutation(list(rules.tools)).tolist():
            tool = rules.tools[name]
            required = tool.schema["function"]["parameters"].get("required", ())
            call = ToolCall(name, {argument: names[int(generator.integers(len(names)))] for argument in required})
            yield render([call])
            if session.calls < rules.max_calls:
                yield session.act([call])[0]
        count = len(view.candidates)
        if count:
            yield render(Ranking(tuple((generator.permutation(count)[:10] + 1).tolist())))


def _with_grammar(texts: Iterable[str], numbers: int) -> Iterator[str]:
    """`texts` without the tags that are tokens already, and whatever must be one token for sure, often enough."""
    tags = (*SPECIAL, *ADDED)
    for text in texts:
        for tag in tags:
            text = text.replace(tag, "\n")
        yield text
    certain = [*map(str, range(numbers + 1)), "system", "user", "assistant", "tool", json.dumps({"name": ""})[:10]]
    yield from ("\n".join(certain) for _ in range(100_000 // len(certain)))
