"""The door to TRL, through the real thing: steps of its GRPOTrainer with a model that calls tools and answers."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers.utils.chat_template_utils import get_json_schema

import agentrec_env  # noqa: F401 - registers the ids
from agentrec_env.adapters import trl as adapter
from agentrec_env.adapters.conversation import Conversation, scenario
from agentrec_env.types import Episode
from benchmarks.speed.workload import RESPONSE, SHAPES, TEMPLATE
from tests.agents.llm.conftest import SPECIAL, tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

KWARGS: dict[str, Any] = {"num_candidates": 3, "tools": ["score_candidates", "get_user_profile", "search_items"]}
HEADER = "assistant\n"
TURN: tuple[tuple[str, ...], ...] = (
    ("<tool_call>",),
    ('{"name": "score_candidates", "arguments": {}}',),
    ("</tool_call>",),
    ("<tool_call> ",),
    ('{"name": "submit_ranking", "arguments": {"ranking": ',),
    ("[1]", "[2]", "[3]"),
    ("}}",),
    ("</tool_call> ",),
    ("<|im_end|>",),
)
"""What the model says in a turn: at each place one of some tokens, all as likely."""


def talker() -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """A model that says `TURN` whenever it is asked: the last token alone decides, by orthogonal embeddings."""
    added = [HEADER, *itertools.chain(*TURN)]
    tokenizer = tiny_tokenizer(template=None, added=tuple(text for text in added if text not in SPECIAL))
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = RESPONSE
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in added}
    model: Any = Qwen3ForCausalLM(SHAPES["tiny"].config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        directions = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q * 8.0
        directions = dict(zip(ids, directions, strict=False))
        for text, direction in directions.items():
            model.model.embed_tokens.weight[ids[text]] = direction
        for said, following in itertools.pairwise(((HEADER,), *TURN)):
            for text in following:
                model.lm_head.weight[ids[text]] = sum(directions[before] for before in said)
    return model, tokenizer


def train(model: Any, tokenizer: Any, environment: type[Any], folder: Path) -> list[Mapping[str, float]]:
    """What two steps of TRL's trainer log."""
    import datasets
    import trl

    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL, on experimental features
        arguments = trl.GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=8,
            num_generations=8,
            max_steps=2,
            max_completion_length=1500,
            max_tool_calling_iterations=1,
            learning_rate=0.05,
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        trainer = trl.GRPOTrainer(
            model=model,
            args=arguments,
            train_dataset=adapter.rows(4),
            processing_class=tokenizer,
            environment_factory=environment,
        )
        trainer.train()
    return [entry for entry in trainer.state.log_history if "reward" in entry]


def test_schemas_are_those_of_the_tools() -> None:
    made = adapter.environment(**KWARGS)()
    offered = {schema["function"]["name"]: schema for schema in Conversation(scenario(**KWARGS)).tools}
    assert set(offered) == {*KWARGS["tools"], "submit_ranking"}
    for name, schema in offered.items():
        assert get_json_schema(getattr(made, name)) == schema


def test_two_steps_of_the_trainer(tmp_path: Path) -> None:
    played: list[tuple[int, Episode, str]] = []

    class Watched(adapter.environment(**KWARGS)):  # type: ignore[misc]
        def reset(self, seed: int, **columns: Any) -> str:
            self._seed = seed
            return str(super().reset(seed=seed, **columns))

        def get_reward(self) -> float:
            reward = float(super().get_reward())
            played.append((self._seed, self._conversation.session.episode(), self._conversation.session.prompt))
            return reward

    model, tokenizer = talker()
    before = model.lm_head.weight.detach().clone()
    logged = train(model, tokenizer, Watched, tmp_path)

    assert len(played) == 16
    env = gymnasium.make("AgentRec-Amazon-v0", **KWARGS)
    for seed, episode, _ in played:
        env.reset(seed=seed)
        assert [len(turn.calls) for turn in episode.turns] == [1, 0]
        assert episode.turns[0].calls[0].name == "score_candidates"
        steps = [env.step(turn.action) for turn in episode.turns]
        assert episode.turns[0].observation == steps[0][0]["text"]
        assert episode.reward == steps[-1][1]
        assert len(episode.ranking) == 1
    for step, entry in enumerate(logged):
        group = played[8 * step : 8 * step + 8]
        assert len({seed for seed, _, _ in group}) == 1
        assert len({prompt for _, _, prompt in group}) == 1
        assert entry["reward"] == pytest.approx(sum(episode.reward for _, episode, _ in group) / 8, abs=1e-5)
        assert entry["tools/call_frequency"] == 2
        assert entry["tools/failure_frequency"] == 0
    assert len({episode.reward for _, episode, _ in played}) == 2
    assert not torch.equal(before, model.lm_head.weight)


def test_calls_that_go_wrong() -> None:
    made: Any = adapter.environment(**KWARGS)()
    text = made.reset(seed=3, prompt=[], another="column")
    assert "submit_ranking" in text
    assert "The 3 candidates:" in text
    assert "takes no arguments" in made.score_candidates(self=1)
    assert "Did you mean" in made.search_items(querry="a")
    assert made.submit_ranking(ranking=[3]) == "The task is over."
    assert made.get_reward() in (1.1, -0.5)
    with pytest.raises(ValueError, match="over"):
        made.submit_ranking(ranking=[1])
    made.reset(seed=3)
    assert made.get_reward() == -1.0


def test_rows_are_one_task_each() -> None:
    rows = adapter.rows(3, seed=5)
    assert rows["seed"] == [5, 6, 7]
    assert rows[0]["prompt"] == [{"role": "user", "content": ""}]


@pytest.mark.parametrize("name", ["reset", "_private"])
def test_names_that_trl_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = scenario(num_candidates=4, tools=["score_candidates"])
    tools = {name: shared.rules.tools["score_candidates"]}
    monkeypatch.setattr(Conversation, "functions", property(lambda self: {name: tools[name].function}))
    with pytest.raises(ValueError, match="another name"):
        adapter.environment(num_candidates=4, tools=["score_candidates"])
