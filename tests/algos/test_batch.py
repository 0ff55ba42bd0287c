"""Batches: sampled tokens alone, found again in any order, refused where they do not fit together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.llm.chat import Prompt
from agents.llm.transcript import TranscriptWriter
from algos.batch import Batch, Credit
from algos.listwise_grpo import ListwiseGRPO
from algos.requests import draw
from tests.algos.batches import random_batch, tokens_of


def two_transcripts() -> Batch:
    writer = TranscriptWriter(Prompt((1, 2, 3), 1))
    writer.sampled([4, 5], [-0.5, -1.5], "stop")
    writer.observed([6, 7])
    writer.sampled([8], [-2.5], "end")
    other = TranscriptWriter(Prompt((1, 2), 1))
    other.sampled([9], [-3.5], "end")
    return Batch.of([writer.freeze(), other.freeze()], [1.0, -0.5], [0, 0])


def test_a_batch_holds_the_sampled_tokens_alone() -> None:
    batch = two_transcripts()
    assert batch.row.tolist() == [0, 0, 0, 1]
    assert batch.position.tolist() == [3, 4, 7, 2]
    assert batch.turn.tolist() == [0, 0, 1, 0]
    assert batch.old_logprobs.tolist() == [-0.5, -1.5, -2.5, -3.5]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.last.tolist() == [False, False, True, True]
    assert (batch.num_trajectories, batch.num_tokens, batch.num_groups) == (2, 4, 1)


def test_tokens_are_found_by_trajectory_and_place() -> None:
    batch = two_transcripts()
    assert batch.locate(torch.tensor([[1, 2], [0, 7], [0, 3]])).tolist() == [3, 2, 0]
    with pytest.raises(ValueError, match=r"no token was sampled at .*\[\[0, 5\]\]"):
        batch.locate(torch.tensor([[0, 3], [0, 5]]))
    with pytest.raises(ValueError, match="no token was sampled"):
        batch.locate(torch.tensor([[0, 10]]))


def test_a_part_speaks_of_its_tokens() -> None:
    batch = random_batch(0, (2, 3))
    credit = Credit(
        advantages=torch.arange(batch.num_tokens).double(),
        weights=torch.ones(batch.num_tokens, dtype=torch.float64),
        divisor=batch.lengths.double(),
        train=batch.lengths > 0,
        returns=-torch.arange(batch.num_tokens).double(),
    )
    tokens = tokens_of(batch, torch.tensor([3, 1]))
    part = batch.part(tokens, credit)
    assert set(part.row.tolist()) == {1, 3}
    assert torch.equal(part.advantages, tokens.double())
    assert part.returns is not None
    assert torch.equal(part.returns, -tokens.double())
    assert torch.equal(part.lengths, batch.lengths[part.row])
    assert batch.values is not None
    assert part.values is not None
    assert torch.equal(part.values, batch.values[tokens])


def test_batches_that_do_not_fit_together_are_refused() -> None:
    batch = two_transcripts()
    for change, message in (
        ({"row": batch.row[:-1]}, r"position has shape \(4,\)"),
        ({"row": batch.row.flip(0)}, "trajectory by trajectory"),
        ({"position": torch.zeros_like(batch.position)}, "in the order in which"),
        ({"row": batch.row + 1}, "0 to 1"),
        ({"rewards": torch.tensor([1.0, torch.nan])}, r"trajectories \[1\] are not finite"),
        ({"group": torch.tensor([0, -1])}, "start at 0"),
        ({"values": torch.zeros(3)}, r"values has shape \(3,\)"),
        ({"transcripts": batch.transcripts[:1]}, "one transcript a trajectory"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(batch, **change)


def test_a_rank_whose_episodes_all_failed_has_an_empty_batch() -> None:
    batch = Batch.of([], [], [])
    credit = ListwiseGRPO().credit(batch, {})
    assert credit.divisor.sum() == 0
    assert len(batch.locate(torch.zeros((0, 2), dtype=torch.int64))) == 0
    assert all(torch.isfinite(metric).all() for metric in credit.metrics.values())


def test_a_transcript_without_sampled_tokens_still_counts_in_its_group() -> None:
    empty = TranscriptWriter(Prompt((1, 2), 1)).freeze()
    batch = Batch.of([empty, *two_transcripts().transcripts], [-1.0, 1.0, 0.5], [0, 0, 0])
    credit = ListwiseGRPO().credit(batch, {})
    assert batch.lengths.tolist() == [0, 3, 1]
    assert credit.advantages[0] == pytest.approx(1.0 - 0.5 / 3)


def test_every_task_is_played_before_any_is_played_again() -> None:
    seen = np.concatenate([draw(step, 4, 2, 10, seed=3).tasks for step in range(5)])
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert not np.array_equal(seen[:10], seen[10:])


def test_requests_depend_on_seed_and_step_alone() -> None:
    one, two = draw(7, 16, 8, 1000, seed=1), draw(7, 16, 8, 1000, seed=1)
    assert np.array_equal(one.tasks, two.tasks)
    assert np.array_equal(one.seeds, two.seeds)
    assert not np.array_equal(one.tasks, draw(7, 16, 8, 1000, seed=2).tasks)
    assert not np.array_equal(one.seeds, draw(8, 16, 8, 1000, seed=1).seeds)


def test_members_of_a_group_share_task_and_seed() -> None:
    requests = draw(0, 3, 4, 100, seed=0)
    tasks, seeds, groups = requests.episodes()
    assert len(tasks) == 12
    for group in range(3):
        assert set(tasks[groups == group]) == {requests.tasks[group]}
        assert set(seeds[groups == group]) == {requests.seeds[group]}


def test_a_step_may_be_larger_than_the_training_split() -> None:
    assert sorted(draw(0, 6, 2, 3, seed=0).tasks) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="no task"):
        draw(0, 6, 2, 0, seed=0)
