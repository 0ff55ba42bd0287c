"""The environment's own tokenizer: one token for a number wherever it stands, and whatever text comes, text goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from agentrec_env.data.synthetic import make_world
from agentrec_env.data.world import World
from agentrec_env.vector import RecVectorEnv
from agents.llm import tokenizer as tokenizer_module
from agents.llm.chat import Chat
from agents.llm.tokenizer import ADDED, SPECIAL, environment_texts, train_tokenizer

EMBEDDED = Path(tokenizer_module.__file__).parent / "tiny"


@pytest.fixture(scope="module")
def envs() -> RecVectorEnv:
    return RecVectorEnv(1, world=World(make_world(num_users=120, num_items=560, seed=1).dataset))


@pytest.fixture(scope="module")
def tokenizer(envs: RecVectorEnv) -> PreTrainedTokenizerFast:
    return train_tokenizer(environment_texts(envs, 20), 1024)


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [tokenizer.decode([number]) for number in tokenizer(text)["input_ids"]]


def test_a_number_is_the_same_token_in_a_list_a_prompt_and_an_answer(tokenizer: PreTrainedTokenizerFast):
    for number in range(1, 100):
        (token,) = tokenizer(str(number))["input_ids"]
        for text in (
            f"[{number}]=5 [3]=4",
            f"none; unknown [{number}] [4]",
            f"\n{number}. A thing",
            f"[8, {number}, 2]",
        ):
            assert token in tokenizer(text)["input_ids"], text


def test_a_strength_joins_the_brackets_around_it(tokenizer: PreTrainedTokenizerFast):
    assert pieces(tokenizer, ": [12]=5 [3]=4 [7]=1; others 0") == [
        *(": [", "12", "]=5 [", "3", "]=4 [", "7", "]=1", "; "),
        *pieces(tokenizer, "others 0"),
    ]


def test_a_sign_of_a_table_is_a_token_with_its_strength(envs: RecVectorEnv):
    tokenizer = train_tokenizer(environment_texts(envs, 60), 4096)
    assert pieces(tokenizer, "popular:5 embedding:2 brand:0 [12]\npopular:4") == [
        *("popular:5", " embedding:2", " brand:0", " [", "12", "]\n", "popular:4")
    ]


def test_calls_and_answers_are_short(tokenizer: PreTrainedTokenizerFast):
    call = '<tool_call>{"name": "score_candidates", "arguments": {}}</tool_call>'
    assert pieces(tokenizer, call) == [
        *("<tool_call>", '{"name": "', "score_candidates", '", "arguments": {', "}}", "</tool_call>")
    ]
    assert len(pieces(tokenizer, "<answer>\\boxed{[8, 3, 15]}</answer>")) == 9


@given(st.text(max_size=200))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str):
    ids = tokenizer(text)["input_ids"]
    assert (
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        == text.encode("utf-8", "replace").decode()
    )


def test_its_chat_template_only_appends(tokenizer: PreTrainedTokenizerFast, envs: RecVectorEnv):
    chat = Chat(tokenizer, envs.tool_schemas)
    assert chat.preserving
    assert not chat.shows_tools
    envs.reset(seed=0)
    prompt = chat.begin(envs.session(0).prompt, envs.scenario.rules.text)
    assert 100 < prompt.shared < len(prompt.ids)
    assert len(tokenizer) <= 1024
    known = tokenizer.get_vocab()
    assert all(token in known for token in (*SPECIAL, *ADDED))


def test_the_rules_are_few_tokens_of_the_embedded_tokenizer(envs: RecVectorEnv):
    chat = Chat(AutoTokenizer.from_pretrained(EMBEDDED), envs.tool_schemas)
    envs.reset(seed=0)
    prompt = chat.begin(envs.session(0).prompt, envs.scenario.rules.text)
    assert 100 < prompt.shared < 300


def test_equal_text_gives_equal_tokenizers(envs: RecVectorEnv):
    one, two, other = (
        train_tokenizer(environment_texts(envs, 3, seed), 600).backend_tokenizer.to_str() for seed in (0, 0, 1)
    )
    assert one == two
    assert one != other
