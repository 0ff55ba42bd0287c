"""verl: an agent loop in which every rollout is an episode, paid by the environment, and the files that a run needs.

The rows of training and validation, and the name of the loop, as files (verl 0.9, transformers < 5.11)::

    python -m agentrec_env.adapters.verl --out data --train 10000 --valid 500 --env '{"dataset": "Video_Games"}'

Then `python -m verl.trainer.main_ppo` with, beside the model and the algorithm::

    data.train_files=data/train.parquet data.val_files=data/valid.parquet
    data.max_prompt_length=2048 data.max_response_length=4096 data.return_raw_chat=True
    actor_rollout_ref.rollout.agent.agent_loop_config_path=data/agent.yaml
    actor_rollout_ref.rollout.multi_turn.format=hermes

The environment writes the prompt when a rollout begins, so a row holds a seed, and the rollouts of a group, which verl
makes by repeating the row, see one task. `multi_turn.format` is verl's name for how the model writes its calls. What
the model sampled is never tokenised again. A conversation that runs past `max_response_length` is cut there and paid
as invalid, as one without an answer is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.schemas import OpenAIFunctionToolSchema

from agentrec_env.adapters.conversation import Conversation, Message, scenario
from agentrec_env.arguments import json_object

LOOP = "agentrec"
"""Name of the agent loop in the rows and in agent.yaml."""


class RecAgentLoop(AgentLoopBase):
    """One episode, as verl's workers run it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._parser = ToolParser.get_tool_parser(self.rollout_config.multi_turn.format, self.tokenizer)

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **row: Any) -> AgentLoopOutput:
        """Play the episode of a row of `rows`.

        Args:
            sampling_params: Of the server.
            priority: Of its requests.
            row: Columns of the row.

        Returns:
            The conversation with the mask of sampled tokens, their log-probabilities where the server gives them, the
            reward, and `hit@k`, `ndcg@k`, `mrr` and calls as what verl reports beside the reward.

        Raises:
            ValueError: A prompt that is longer than `rollout.prompt_length`.
        """
        told = row["extra_info"]
        conversation = Conversation(scenario(**json.loads(told["env"])))
        messages: list[dict[str, Any]] = [*conversation.reset(told["seed"], told["task"])]
        tools = list(conversation.tools)
        schemas = [OpenAIFunctionToolSchema.model_validate(schema) for schema in tools]
        stop = sorted({*(sampling_params.get("stop_token_ids") or ()), *self._parser.stop_token_ids})
        sampling_params = {**sampling_params, "stop_token_ids": stop} if stop else sampling_params
        ids = await self._prompt(messages, tools)
        begin, limit = len(ids), self.rollout_config.response_length
        mask: list[int] = []
        logprobs: list[float] | None = None
        metrics = AgentLoopMetrics()
        request = f"det-{priority}" if self.rollout_config.full_determinism else uuid4().hex
        while True:
            clock = time.perf_counter()
            sampled = await self.server_manager.generate(
                request_id=request, prompt_ids=ids, sampling_params=sampling_params, priority=int(priority)
            )
            metrics.generate_sequences += time.perf_counter() - clock
            if sampled.log_probs and logprobs is None:
                logprobs = [0.0] * len(mask)
            merged, mask, logprobs = await self.ct_merge_assistant_token(
                ids, sampled.token_ids, mask, logprobs, assistant_logprobs=sampled.log_probs or None
            )
            ids = merged.token_ids
            if len(mask) > limit:
                break
            text, calls = await self._parser.extract_tool_calls(sampled.token_ids, schemas)
            clock = time.perf_counter()
            replies = await asyncio.to_thread(_answers, conversation, calls)
            metrics.tool_calls += time.perf_counter() - clock
            if conversation.done or not calls:
                break
            before = [*messages, _said(text, calls)]
            messages = [*before, *replies]
            merged, mask, logprobs = await self.ct_merge_context_msg(before, messages, ids, mask, logprobs, tools=tools)
            ids = merged.token_ids
            if len(mask) >= limit:
                break
        reward = conversation.finish()
        return AgentLoopOutput(
            prompt_ids=ids[:begin],
            response_ids=ids[begin : begin + limit],
            response_mask=mask[:limit],
            response_logprobs=None if logprobs is None else logprobs[:limit],
            reward_score=reward,
            num_turns=len(messages) + 1,
            metrics=metrics,
            extra_fields={"reward_extra_info": conversation.metrics},
        )

    async def _prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
        """The ids of a prompt that was not cut: verl cuts at the left, where the rules and the history stand."""
        builder, limit = self.continuous_token_builder, self.rollout_config.prompt_length
        ids: list[int] = await asyncio.to_thread(builder.build_initial_tokens, messages, tools=tools)
        if len(ids) > limit:
            raise ValueError(
                f"the task is written in {len(ids):,} tokens and rollout.prompt_length is {limit:,}; raise "
                "data.max_prompt_length, or lower num_candidates, history_length or the number of tools"
            )
        return ids


def _answers(conversation: Conversation, calls: list[FunctionCall]) -> list[dict[str, Any]]:
    """What the model reads after its calls, of which those after the end of the episode are not made."""
    replies: list[dict[str, Any]] = []
    for call in calls:
        if conversation.done:
            break
        text = conversation.call(call.name, json.loads(call.arguments))
        reply: Message = {"role": "tool", "content": text}
        replies.append(reply | ({"tool_call_id": call.tool_call_id} if call.tool_call_id else {}))
    return replies


def _said(text: str, calls: list[FunctionCall]) -> dict[str, Any]:
    """The model's message, for the templates that look back at it."""
    made = [
        {
            "id": call.tool_call_id or f"call_{place}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.loads(call.arguments)},
        }
        for place, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": text, "tool_calls": made}


def rows(number: int, seed: int | None = 0, **kwargs: Any) -> list[dict[str, Any]]:
    """Rows of a dataset of verl, each a task of its own.

    Args:
        number: How many.
        seed: Of the first row, the others count up from it: tasks and pools are drawn. None: the first tasks in order,
            with their fixed evaluation pools.
        kwargs: Of `gym.make("AgentRec-Amazon-v0")`.

    Raises:
        TypeError, ValueError: An argument that cannot be used; without a seed, more rows than there are tasks.
    """
    tasks = scenario(**kwargs).num_tasks
    if seed is None and number > tasks:
        raise ValueError(f"{number:,} tasks were asked for, and there are {tasks:,}")
    message = [{"role": "user", "content": ""}]
    told = {"env": json.dumps(kwargs, sort_keys=True)}
    return [
        {
            "prompt": message,
            "data_source": "agentrec",
            "agent_name": LOOP,
            "extra_info": {
                **told,
                "index": place,
                "seed": None if seed is None else seed + place,
                "task": place if seed is None else None,
            },
        }
        for place in range(number)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Write train.parquet, valid.parquet and agent.yaml."""
    from datasets import Dataset

    parser = argparse.ArgumentParser(prog="python -m agentrec_env.adapters.verl", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--train", type=int, default=10_000, metavar="N", help="rows of training (10,000)")
    parser.add_argument("--valid", type=int, default=500, metavar="N", help="valid tasks, with their fixed pools (500)")
    parser.add_argument("--seed", type=int, default=0, help="of the first row of training")
    parser.add_argument("--env", type=json_object, default={}, metavar="JSON", help="arguments of gym.make")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    kinds = {
        "train": rows(options.train, options.seed, **options.env),
        "valid": rows(options.valid, None, **{**options.env, "task_split": "valid"}),
    }
    for name, made in kinds.items():
        Dataset.from_list(made).to_parquet(options.out / f"{name}.parquet.partial")
        (options.out / f"{name}.parquet.partial").replace(options.out / f"{name}.parquet")
    loop = f"- name: {LOOP}\n  _target_: agentrec_env.adapters.verl.{RecAgentLoop.__name__}\n"
    (options.out / "agent.yaml").write_text(loop, encoding="utf-8")


if __name__ == "__main__":
    main()
