"""The language model as an agent: real engine, real policy, real environment; the model is a puppet of known habits."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from agentrec_env.check import check_agent
from agentrec_env.data.dataset import Dataset
from agentrec_env.data.world import World
from agentrec_env.types import Episode, StopReason
from agentrec_env.vector import RecVectorEnv, rows_of
from agents import play
from agents.llm.agent import LLMAgent
from agents.llm.chat import Chat, ChatTemplateError
from agents.llm.loading import PolicyLoadError
from agents.llm.policy import Policy
from agents.protocol import Overflow, StreamingAgent
from tests.agents.llm.conftest import ADDED, SPECIAL, tiny_tokenizer

CALL, LIST, OTHER = '{"name": "get_user_profile", "arguments": {}}', "[2, 1]", "[1, 3, 2]"
HABITS: Mapping[str, Mapping[str, float]] = {
    "\n": {"<tool_call>": 20.0, "<answer>": 19.0, "hm": 18.0},
    "<tool_call>": {CALL: 20.0},
    CALL: {"</tool_call>": 20.0},
    "<answer>": {LIST: 20.0, OTHER: 19.5},
    LIST: {"</answer>": 20.0},
    OTHER: {"</answer>": 20.0},
    "hm": {"hm": 20.0, "<|im_end|>": 19.0},
}
"""Token -> logits of the next; a line break ends the header of a turn. Calls, answers, now and then neither."""
NEVER_ENDS = {"\n": {"hm": 20.0}, "hm": {"hm": 20.0}}
TASKS = [3, 0, 7, 7, 1, 5, 2, 4]


def puppet_tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(special=SPECIAL, added=(*ADDED, CALL, LIST, OTHER, "hm"))


def puppet(habits: Mapping[str, Mapping[str, float]] = HABITS, context: int = 4096) -> Policy:
    """A policy whose next token depends on the last one alone, as `habits` say."""
    tokenizer = puppet_tokenizer()
    width = 64
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:, -1] = 1.0
        model.lm_head.weight.zero_()
        for place, (token, following) in enumerate(habits.items()):
            (number,) = tokenizer(token, add_special_tokens=False)["input_ids"]
            model.model.embed_tokens.weight[number] = 0.0
            model.model.embed_tokens.weight[number, place] = 1.0
            for other, logit in following.items():
                (follower,) = tokenizer(other, add_special_tokens=False)["input_ids"]
                model.lm_head.weight[follower, place] = logit / width**0.5
    return Policy(model.eval(), tokenizer)


@pytest.fixture(scope="module")
def world(tiny: Dataset) -> World:
    return World(tiny, num_candidates=5, history_length=3)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return puppet()


def environments(world: World, rows: int, **kwargs: Any) -> RecVectorEnv:
    return RecVectorEnv(rows, world=world, tools=["get_user_profile"], max_calls=3, retries=2, **kwargs)


def told(episode: Episode) -> tuple[Any, ...]:
    """All of an episode that must not depend on who played beside it."""
    transcript = episode.info["transcript"]
    return (
        episode.task_index,
        episode.stop,
        episode.error,
        episode.ranking,
        tuple((turn.action, turn.observation) for turn in episode.turns),
        transcript.ids.tolist(),
        transcript.turns,
    )


def test_it_calls_tools_answers_and_streams(world: World, policy: Policy) -> None:
    agent = LLMAgent(policy=policy)
    assert isinstance(agent, StreamingAgent)
    episodes = play(environments(world, 8), agent, range(24))
    assert {episode.stop for episode in episodes} >= {StopReason.ANSWERED, StopReason.TOO_MANY_CALLS}
    assert {episode.calls for episode in episodes} >= {0, 1, 2, 3}
    assert any("Invalid action" in turn.observation for episode in episodes for turn in episode.turns)
    figures = agent.metrics
    assert figures["episodes"] == 24
    assert figures["turns"] == sum(len(episode.turns) for episode in episodes)
    assert figures["tokens"] == sum(episode.info["tokens"] for episode in episodes)
    assert figures["tokens_per_second"] > 0


def test_the_record_holds_what_was_sampled(world: World, policy: Policy) -> None:
    episodes = play(environments(world, 4), LLMAgent(policy=policy), TASKS)
    chat = Chat(policy.tokenizer, environments(world, 1).tool_schemas)
    for episode in episodes:
        transcript = episode.info["transcript"]
        assert [chat.text(transcript.ids[turn.start : turn.end]) for turn in transcript.turns] == [
            turn.action for turn in episode.turns
        ]
        assert transcript.mask.sum() == episode.info["tokens"] == sum(t.end - t.start for t in transcript.turns)
        assert transcript.turns[-1].end == len(transcript)
        shown = policy.tokenizer.decode(transcript.ids[~transcript.mask])
        for turn in episode.turns[:-1]:
            assert turn.observation in shown
    shared = {episode.info["transcript"].shared for episode in episodes}
    assert len(shared) == 1
    heads = {tuple(episode.info["transcript"].ids[: min(shared)].tolist()) for episode in episodes}
    assert len(heads) == 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_probabilities_of_the_record_are_those_of_the_policy(
    world: World, temperature: float, device: torch.device
) -> None:
    policy = puppet().to(device)
    agent = LLMAgent(policy=policy, temperature=temperature, dtype="float32")
    episodes = play(environments(world, 4), agent, TASKS)
    transcripts = [episode.info["transcript"] for episode in episodes]
    for transcript, scores in zip(transcripts, policy.score(transcripts, temperature=temperature), strict=True):
        np.testing.assert_allclose(transcript.logprobs, scores, atol=1e-3)
        assert (transcript.logprobs[transcript.mask] <= 0).all()


def test_episodes_do_not_depend_on_the_number_of_rows(world: World, device: torch.device) -> None:
    policy = puppet().to(device)
    runs = [
        play(environments(world, rows), LLMAgent(policy=policy, rows=active, dtype="float32"), TASKS, seed=5)
        for rows, active in ((1, None), (3, None), (20, None), (5, 2))
    ]
    for run in runs[1:]:
        assert [told(episode) for episode in run] == [told(episode) for episode in runs[0]]


def test_seeds_of_run_and_episode_say_what_is_sampled(world: World, policy: Policy) -> None:
    agent = LLMAgent(policy=policy)
    group = play(environments(world, 6), agent, [4] * 12, seed=1, seeds=[7] * 12)
    assert len({episode.prompt for episode in group}) == 1
    assert len(Counter(tuple(turn.action for turn in episode.turns) for episode in group)) > 3
    again = play(environments(world, 4), agent, [4] * 12, seed=1, seeds=[7] * 12)
    assert [told(episode) for episode in again] == [told(episode) for episode in group]
    other = play(environments(world, 6), agent, [4] * 12, seed=2, seeds=[7] * 12)
    assert [told(episode) for episode in other] != [told(episode) for episode in group]


def test_changed_weights_are_taken_over(world: World) -> None:
    policy = puppet()
    agent = LLMAgent(policy=policy)
    before = play(environments(world, 4), agent, TASKS)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(0.6)
    after = play(environments(world, 4), agent, TASKS)
    assert [told(episode) for episode in before] != [told(episode) for episode in after]
    transcripts = [episode.info["transcript"] for episode in after]
    for transcript, scores in zip(transcripts, policy.score(transcripts), strict=True):
        np.testing.assert_allclose(transcript.logprobs, scores, atol=1e-3)


def test_a_turn_that_does_not_end_is_an_overflow(world: World) -> None:
    agent = LLMAgent(policy=puppet(NEVER_ENDS), max_turn_tokens=9)
    episodes = play(environments(world, 2), agent, [0, 1, 2])
    for episode in episodes:
        assert episode.stop is StopReason.OVERFLOW
        assert "within 9 tokens; raise max_turn_tokens" in str(episode.error)
        assert episode.reward < 0
        assert episode.info["tokens"] == 9
        assert episode.info["stop"] == "turn_budget"
        assert len(episode.turns) == 0
    assert agent.metrics["overflows"] == 3


def test_an_episode_that_outgrows_its_budget_is_an_overflow(world: World, policy: Policy) -> None:
    longest = max(
        len(episode.info["transcript"]) for episode in play(environments(world, 4), LLMAgent(policy=policy), TASKS)
    )
    free = play(environments(world, 4), LLMAgent(policy=policy), TASKS)
    budget = longest - 40
    tight = play(environments(world, 4), LLMAgent(policy=policy, max_episode_tokens=budget), TASKS)
    assert {episode.stop for episode in tight} >= {StopReason.OVERFLOW, StopReason.ANSWERED}
    for one, other in zip(tight, free, strict=True):
        if one.stop is StopReason.OVERFLOW:
            assert f"max_episode_tokens is {budget:,}; raise it" in str(one.error)
            assert len(one.info["transcript"]) <= budget < len(other.info["transcript"])
        else:
            assert told(one) == told(other)


def test_a_prompt_longer_than_the_context_marks_its_episode_alone(world: World, policy: Policy) -> None:
    free = play(environments(world, 4), LLMAgent(policy=policy), TASKS)
    lengths = sorted(episode.info["transcript"].prompt for episode in free)
    context = lengths[len(lengths) // 2]
    small = play(environments(world, 4), LLMAgent(policy=puppet(context=context)), TASKS)
    for one, other in zip(small, free, strict=True):
        prompt = other.info["transcript"].prompt
        if prompt >= context:
            assert one.stop is StopReason.OVERFLOW
            assert f"the prompt takes {prompt:,} tokens: the model's context is {context:,}" in str(one.error)
            assert one.info["transcript"].mask.sum() == 0
        else:
            assert (
                one.info["transcript"].ids.tolist()
                == other.info["transcript"].ids.tolist()[: len(one.info["transcript"])]
            )
    assert any(episode.info["tokens"] for episode in small)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"context": 50}, "the model's context is 50"), ({}, "max_episode_tokens is 60; raise it")],
)
def test_rules_that_do_not_fit_are_an_error_at_once(world: World, kwargs: dict[str, int], message: str) -> None:
    agent = LLMAgent(policy=puppet(**kwargs), max_episode_tokens=60)
    with pytest.raises(ValueError, match=f"rules alone take .* tokens.*{message}"):
        play(environments(world, 2), agent, [0])


def test_a_model_that_cannot_be_had_is_a_clear_error(world: World, tmp_path: Path) -> None:
    for model in (tmp_path / "none", str(tmp_path), "./nowhere"):
        with pytest.raises(PolicyLoadError, match=r"no folder|holds no model"):
            play(environments(world, 2), LLMAgent(model=model), [0])


def test_an_id_that_the_hub_cannot_have_is_a_clear_error(world: World) -> None:
    with pytest.raises(PolicyLoadError, match="no such model!"):
        play(environments(world, 2), LLMAgent(model="no such model!"), [0])


def test_a_saved_model_plays_as_the_one_in_memory(world: World, policy: Policy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "puppet")
    loaded = LLMAgent(model=tmp_path / "puppet", device="cpu")
    assert "puppet" in repr(loaded)
    one = play(environments(world, 4), loaded, TASKS)
    other = play(environments(world, 4), LLMAgent(policy=policy), TASKS)
    assert [told(episode) for episode in one] == [told(episode) for episode in other]


def test_a_tokenizer_without_chat_template_is_refused(world: World) -> None:
    policy = puppet()
    policy.tokenizer = copy.deepcopy(policy.tokenizer)
    policy.tokenizer.chat_template = None
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        play(environments(world, 2), LLMAgent(policy=policy), [0])


def test_it_keeps_to_the_protocol_without_streaming(world: World) -> None:
    habits = {**HABITS, "\n": {"<tool_call>": 20.0, "<answer>": 20.0}}
    check_agent(LLMAgent(policy=puppet(habits)), environments(world, 3))


def test_a_failed_act_can_be_asked_again_row_by_row(world: World) -> None:
    habits = {**HABITS, "\n": {"<tool_call>": 20.0, "hm": 20.0}, "hm": {"hm": 20.0}}
    envs = environments(world, 12)
    observations = rows_of(envs.reset(options={"task": list(range(12))})[0])
    agent = LLMAgent(policy=puppet(habits), max_turn_tokens=8)
    agent.bind(envs)

    def ask(rows: list[int]) -> list[str | type]:
        try:
            return list(agent.act([observations[row] for row in rows], rows))
        except Overflow:
            return [Overflow] if len(rows) == 1 else []

    agent.reset(12, 0)
    assert ask(list(range(12))) == []
    again = [ask([row])[0] for row in range(12)]
    agent.reset(12, 0)
    alone = [ask([row])[0] for row in range(12)]
    assert again == alone
    assert 0 < again.count(Overflow) < 12
    assert agent.metrics["turns"] == 24


def test_a_row_without_an_episode_is_told_so_alone(world: World, policy: Policy) -> None:
    envs = environments(world, 2)
    agent = LLMAgent(policy=policy)
    with pytest.raises(RuntimeError, match=r"call bind\(envs\)"):
        agent.reset(2, 0)
    agent.bind(envs)
    with pytest.raises(RuntimeError, match=r"reset\(num_envs, seed\) first"):
        agent.recv()
    agent.reset(2, 0)
    first, second = rows_of(envs.reset(options={"task": [0, 1]})[0])
    agent.send([first, {**second, "turn": 1}], [0, 1], [0, 1])
    answers: dict[int, str | Exception] = {}
    while len(answers) < 2:
        answers.update(zip(*reversed(agent.recv()), strict=True))
    assert isinstance(answers[0], str)
    assert "no running episode" in str(answers[1])
    assert agent.record(1) == {}
    assert agent.record(0)["tokens"] > 0
    assert agent.record(0)["transcript"].ids.tolist() == agent.record(0)["transcript"].ids.tolist()
    agent.send([{**first, "turn": 1}], [0], [0])
    assert isinstance(agent.recv()[0][0], RuntimeError)


@pytest.mark.parametrize(
    "kwargs",
    [{"dtype": "float64"}, {"rows": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"max_turn_tokens": 0}],
)
def test_arguments_that_cannot_be_used_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(kwargs)))):
        LLMAgent(**kwargs)


def test_a_policy_has_a_device_already(policy: Policy) -> None:
    with pytest.raises(ValueError, match="leave device out"):
        LLMAgent(policy=policy, device="cpu")
