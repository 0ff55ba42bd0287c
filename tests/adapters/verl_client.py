"""Plays a batch in verl's own worker, the model being a script, and prints as JSON what verl would train on; run by
`test_verl.py`.

python verl_client.py MODEL FOLDER ROUNDS

FOLDER has what `python -m agentrec_env.adapters.verl` wrote; ROUNDS is JSON: what the model says, by turn, in every
conversation of a row.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import verl.trainer
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from torch.utils.data import DataLoader
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.protocol import DataProto
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.workers.rollout.replica import TokenOutput

LENGTHS = {"prompt": 2048, "response": 600}
END = "<|im_end|>"


class Script:
    """What stands for verl's client of its servers: says the lines in turn, whatever it is asked."""

    def __init__(self, tokenizer: Any, rounds: list[list[str]]) -> None:
        self.tokenizer = tokenizer
        self.rounds = rounds
        self.conversations: dict[str, list[str]] = {}
        self.sampled: dict[str, list[list[int]]] = {}
        self.asked: dict[str, list[list[int]]] = {}

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **rest: Any
    ) -> TokenOutput:
        await asyncio.sleep(0)
        if request_id not in self.conversations:
            self.conversations[request_id] = list(self.rounds[len(self.conversations)])
        ids = self.tokenizer.encode(self.conversations[request_id].pop(0) + END, add_special_tokens=False)
        self.asked.setdefault(request_id, []).append(list(prompt_ids))
        self.sampled.setdefault(request_id, []).append(ids)
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="completed")


def main(model: str, folder: str, rounds: str) -> None:
    with initialize_config_dir(str(Path(verl.trainer.__file__).parent / "config"), version_base=None):
        config = compose(
            "ppo_trainer",
            [
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.rollout.multi_turn.format=hermes",
                f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder}/agent.yaml",
                f"actor_rollout_ref.rollout.prompt_length={LENGTHS['prompt']}",
                f"actor_rollout_ref.rollout.response_length={LENGTHS['response']}",
                f"data.train_files={folder}/train.parquet",
                f"data.max_prompt_length={LENGTHS['prompt']}",
                "data.return_raw_chat=True",
                f"+data.cache_dir={folder}/verl",
            ],
        )
    worker = AgentLoopWorker(config, llm_client=None)
    worker.llm_client = Script(worker.tokenizer, json.loads(rounds))
    dataset = RLHFDataset(f"{folder}/train.parquet", worker.tokenizer, config.data)
    columns = next(iter(DataLoader(dataset, batch_size=len(dataset), collate_fn=collate_fn)))
    plain = {name: values for name, values in columns.items() if not hasattr(values, "numpy")}
    batch = DataProto(batch=TensorDict({}, batch_size=[len(dataset)]), non_tensor_batch=plain)
    made = asyncio.run(worker.generate_sequences(batch))
    tokenizer, script = worker.tokenizer, worker.llm_client
    rows = []
    for place, request in enumerate(script.sampled):
        tensors = {name: values[place] for name, values in made.batch.items()}
        kept = tensors["attention_mask"][LENGTHS["prompt"] :].bool()
        responses, mask = tensors["responses"][kept], tensors["response_mask"][kept].bool()
        rows.append(
            {
                "prompt": tokenizer.decode(script.asked[request][0]),
                "last": tokenizer.decode(script.asked[request][-1]),
                "first_ids": script.asked[request][0],
                "prompt_ids": tensors["prompts"][tensors["attention_mask"][: LENGTHS["prompt"]].bool()].tolist(),
                "length": len(responses),
                "trained": responses[mask].tolist(),
                "sampled": [token for ids in script.sampled[request] for token in ids],
                "logprobs": tensors["rollout_log_probs"][: len(mask)][mask].tolist(),
                "reward": tensors["rm_scores"].sum().item(),
                "turns": int(made.non_tensor_batch["__num_turns__"][place]),
                "ndcg": float(made.non_tensor_batch["ndcg@10"][place]),
                "calls": float(made.non_tensor_batch["calls"][place]),
                "seed": plain["extra_info"][place]["seed"],
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
