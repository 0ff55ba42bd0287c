"""The engine samples what the model says, whatever else is in the batch, and ends turns where they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, PreTrainedModel

from agents.llm import engine as engine_module
from agents.llm import sampling
from agents.llm.chat import Prompt
from agents.llm.decoder import Decoder
from agents.llm.engine import Engine, Generation
from agents.llm.fused import FusedDecoder
from agents.llm.sampling import Sampling
from tests.agents.llm.conftest import tiny_model, tiny_tokenizer

VOCABULARY = 512
END = 300
"""A stop id that random models sample now and then."""
SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None}


def random_model(config: Any) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: tiny_model("qwen3"),
    "llama": lambda: tiny_model("llama"),
    "qwen2": lambda: tiny_model("qwen2"),
    "gpt2": lambda: random_model(GPT2Config(**SHAPE, n_embd=32, n_layer=2, n_head=2, n_positions=1024)),
    "mistral, sliding": lambda: random_model(
        MistralConfig(
            **SHAPE,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            sliding_window=40,
        )
    ),
}


def make_engine(
    model: Any, rows: int, stops: Sequence[str] = (), stop_ids: Sequence[int] = (END,), **kwargs: Any
) -> Engine:
    limits = {key: kwargs.pop(key) for key in list(kwargs) if key in Sampling.__dataclass_fields__}
    sampling = Sampling(**({"max_turn_tokens": 9, "max_episode_tokens": 700} | limits))
    return Engine(model, tiny_tokenizer(), rows, sampling, stop_ids, stops, dtype=torch.float32, **kwargs)


def prompt_of(number: int) -> Prompt:
    """Prompts of different lengths with a head in common."""
    rng = np.random.default_rng(number)
    head = range(10, 50)
    return Prompt((*head, *rng.integers(0, 500, 30 + 13 * number).tolist()), len(head))


def observation(row_seed: int, turn: int) -> list[int]:
    rng = np.random.default_rng([row_seed % 2**64, turn])
    drawn: list[int] = rng.integers(0, 500, rng.integers(1, 60)).tolist()
    return drawn


class Episode:
    """All ids of one conversation, and the turns in it."""

    def __init__(self, prompt: Prompt) -> None:
        self.ids = list(prompt.ids)
        self.turns: list[tuple[int, Generation]] = []


def play(
    engine: Engine,
    jobs: Mapping[int, tuple[Prompt, int]],
    turns: int = 4,
    waits: Callable[[int, int], int] | None = None,
) -> dict[int, Episode]:
    """Play a conversation in each row of `jobs` (its prompt and seed); a tool may take `waits(seed, turn)` runs."""
    engine.begin(list(jobs), [prompt for prompt, _ in jobs.values()], [seed for _, seed in jobs.values()])
    episodes = {row: Episode(prompt) for row, (prompt, _) in jobs.items()}
    waiting: dict[int, int] = {}
    running = set(jobs)
    while running or waiting:
        for row in [row for row, left in waiting.items() if left <= 0 or not running]:
            del waiting[row]
            more = observation(jobs[row][1], len(episodes[row].turns))
            engine.extend([row], [more])
            episodes[row].ids += more
            running.add(row)
        waiting = {row: left - 1 for row, left in waiting.items()}
        for generation in engine.run():
            row, episode = generation.row, episodes[generation.row]
            running.remove(row)
            episode.turns.append((len(episode.ids), generation))
            episode.ids += generation.ids.tolist()
            if len(episode.turns) == turns or generation.stop in ("episode_budget", "context"):
                engine.release(row)
            else:
                waiting[row] = waits(jobs[row][1], len(episode.turns)) if waits else 0
    return episodes


@torch.no_grad()
def error(model: Any, episode: Episode, temperature: float) -> float:
    """The largest difference of a log-probability from a plain forward pass over the whole conversation."""
    device = next(model.parameters()).device
    logits = model(torch.tensor([episode.ids], device=device), use_cache=False).logits[0]
    full = torch.log_softmax(logits.float() / (temperature or 1), dim=-1).cpu().numpy()
    worst = 0.0
    for start, turn in episode.turns:
        right = full[np.arange(start - 1, start - 1 + len(turn.ids)), turn.ids]
        worst = max(worst, float(np.abs(right - turn.logprobs).max(initial=0)))
    return worst


@pytest.mark.parametrize(
    ("family", "temperature"), [(family, 0.7) for family in MODELS] + [("qwen3", 1.0), ("qwen3", 0)]
)
def test_logprobs_are_those_of_a_plain_forward_pass(family: str, temperature: float, device: torch.device) -> None:
    model = MODELS[family]().to(device)
    rows = 12 if family in ("qwen3", "llama", "qwen2") else 4
    engine = make_engine(model, rows, temperature=temperature)
    jobs = {row: (prompt_of(row // 4), 100 + row) for row in range(rows)}
    episodes = play(engine, jobs, waits=lambda seed, turn: (seed * turn) % 4)
    assert sum(len(turn.ids) for episode in episodes.values() for _, turn in episode.turns) > 30 * rows
    assert max(error(model, episode, temperature) for episode in episodes.values()) < 1e-3


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_row_samples_the_same_alone_and_in_a_batch_of_64(top_p: float, device: torch.device) -> None:
    model = tiny_model().to(device)
    jobs = {row: (prompt_of(row // 8), 1000 + row) for row in range(64)}
    together = play(make_engine(model, 64, top_p=top_p), jobs, waits=lambda seed, turn: (seed * turn) % 5)
    engine = make_engine(model, 3, top_p=top_p)
    for row in (0, 31, 63):
        alone = play(engine, {1: jobs[row]})[1]
        assert alone.ids == together[row].ids
        for (_, one), (_, other) in zip(alone.turns, together[row].turns, strict=True):
            assert one.stop == other.stop
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_equal_seeds_give_equal_samples_and_others_do_not(device: torch.device) -> None:
    engine = make_engine(tiny_model().to(device), 6)
    jobs = {row: (prompt_of(0), seed) for row, seed in enumerate([5, 5, -40, 2**64 - 40, 6, 2**40])}
    ids = [episode.ids for episode in play(engine, jobs).values()]
    assert ids[0] == ids[1]
    assert ids[2] == ids[3]  # the same number in 64 bits
    assert len({tuple(found) for found in ids}) == 4


def test_top_p_keeps_to_the_likeliest_tokens_and_reports_full_logprobs(device: torch.device) -> None:
    model = tiny_model().to(device)
    episodes = play(make_engine(model, 8, top_p=0.3), {row: (prompt_of(0), row) for row in range(8)})
    for episode in episodes.values():
        assert error(model, episode, 1.0) < 1e-3
        with torch.no_grad():
            probabilities = model(torch.tensor([episode.ids], device=device)).logits[0].softmax(-1).cpu()
        for start, turn in episode.turns:
            for place, token in enumerate(turn.ids.tolist(), start):
                likelier = probabilities[place - 1][probabilities[place - 1] > probabilities[place - 1, token]]
                assert float(likelier.sum()) < 0.3 + 1e-4


def test_greedy_is_generate_without_sampling(device: torch.device) -> None:
    model = tiny_model("llama").to(device)
    engine = make_engine(model, 3, temperature=0, max_turn_tokens=40, stop_ids=())
    prompts = [prompt_of(number) for number in range(3)]
    engine.begin([0, 1, 2], prompts, [1, 2, 3])
    for generation in engine.run():
        ids = torch.tensor([prompts[generation.row].ids], device=device)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, pad_token_id=0
        )
        assert generation.ids.tolist() == out[0, ids.shape[1] :].tolist()


def test_rows_join_late_and_are_used_again(device: torch.device) -> None:
    model = tiny_model().to(device)
    jobs = {row: (prompt_of(row % 3), 50 + row) for row in range(9)}
    right = play(make_engine(model, 9), jobs)
    engine = make_engine(model, 3)
    todo, place, done = list(jobs), {}, {}
    turn_of: dict[int, int] = {}
    for row in (2, 0):
        place[row] = todo.pop(0)
        engine.begin([row], [jobs[place[row]][0]], [jobs[place[row]][1]])
    while place or todo:
        if len(place) < 3 and todo:
            row = next(row for row in (1, 0, 2) if row not in place)
            place[row] = todo.pop(0)
            engine.begin([row], [jobs[place[row]][0]], [jobs[place[row]][1]])
        for generation in engine.run():
            job = place[generation.row]
            turn = turn_of[job] = turn_of.get(job, -1) + 1
            assert generation.ids.tolist() == right[job].turns[turn][1].ids.tolist()
            if turn == 3:
                del place[generation.row]  # `begin` forgets what the row held
                done[job] = True
            else:
                engine.extend([generation.row], [observation(jobs[job][1], turn + 1)])
    assert sorted(done) == list(jobs)


class Script:
    """A decoder that says what it is told, to look at where turns end."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)

    def _next(self, count: int) -> torch.Tensor:
        logits = torch.full((count, VOCABULARY), -30.0)
        logits[:, self.ids.pop(0)] = 30.0
        return logits

    def begin(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> torch.Tensor:
        return self._next(len(rows))

    def feed(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> torch.Tensor:
        return self._next(len(rows))

    def release(self, row: int) -> None: ...

    def refresh(self) -> None: ...

    def free(self) -> None: ...


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """An engine whose model says given ids."""

    def make(ids: Sequence[int], **kwargs: Any) -> Engine:
        monkeypatch.setattr("agents.llm.engine.make_decoder", lambda *_: Script(ids))
        return make_engine(tiny_model(), 1, **kwargs)

    return make


def test_a_turn_ends_at_a_stop_string_that_straddles_tokens_and_the_next_does_not_see_it(
    scripted: Callable[..., Engine],
) -> None:
    tokenizer = tiny_tokenizer()
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "</answer>"]
    close = tokenizer.convert_tokens_to_ids("</tool_call>")
    assert close == tokenizer.encode("</tool_call>")[0]
    other = tokenizer.encode("Strap")[0]
    said = [other, close, *letters[:-1], other, *letters[:-1], letters[-1], letters[-1], END]
    engine = scripted(said, stops=("</tool_call>", "</answer>"), max_turn_tokens=30)
    engine.begin([0], [prompt_of(0)], [0])
    turns = []
    for _ in range(3):
        turns += engine.run()
        engine.extend([0], [letters[:-1]])  # what is shown is no part of what was said
    assert [turn.stop for turn in turns] == ["stop", "stop", "end"]
    assert [turn.ids.tolist() for turn in turns] == [said[:2], said[2:-2], said[-2:]]
    np.testing.assert_allclose(turns[0].logprobs, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("limits", "context", "stop", "count"),
    [
        ({"max_turn_tokens": 5}, 4096, "turn_budget", 5),
        ({"max_episode_tokens": 77}, 4096, "episode_budget", 7),
        ({"max_episode_tokens": 700}, 75, "context", 5),
        ({"max_episode_tokens": 70}, 4096, "episode_budget", 0),
        ({"max_episode_tokens": 60}, 4096, "episode_budget", 0),
        ({}, 60, "context", 0),
    ],
)
def test_budgets_end_a_turn_each_with_its_own_reason(
    limits: dict[str, int], context: int, stop: str, count: int
) -> None:
    engine = make_engine(tiny_model(context=context), 2, stop_ids=(), **limits)
    prompt = prompt_of(0)
    assert len(prompt.ids) == 70
    engine.begin([1], [prompt], [3])
    (turn,) = engine.run()
    assert (turn.row, turn.stop, len(turn.ids), len(turn.logprobs)) == (1, stop, count, count)


def test_an_observation_that_leaves_no_room_ends_the_episode_and_other_rows_go_on() -> None:
    engine = make_engine(tiny_model(), 2, max_turn_tokens=4, max_episode_tokens=100, stop_ids=())
    engine.begin([0, 1], [prompt_of(0)] * 2, [1, 2])
    assert {turn.row for turn in engine.run()} == {0, 1}
    engine.extend([0, 1], [list(range(40)), [7]])
    (turn,) = engine.run()
    assert (turn.row, turn.stop, turn.ids.tolist()) == (0, "episode_budget", [])
    (turn,) = engine.run()
    assert (turn.row, turn.stop, len(turn.ids)) == (1, "turn_budget", 4)


def test_refresh_samples_from_changed_weights_in_the_middle_of_an_episode(device: torch.device) -> None:
    model = tiny_model().to(device)
    engine = make_engine(model, 4, stop_ids=())
    prompt = prompt_of(1)
    engine.begin(range(4), [prompt] * 4, range(4))
    ids = {turn.row: [*prompt.ids, *turn.ids.tolist(), 9, 8, 7] for turn in engine.run()}
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(device))
    engine.refresh()
    engine.extend(range(4), [[9, 8, 7]] * 4)
    for turn in engine.run():
        episode = Episode(Prompt((*ids[turn.row], *turn.ids.tolist()), 0))
        episode.turns.append((len(ids[turn.row]), turn))
        assert error(model, episode, 1.0) < 1e-3


def test_freed_memory_is_taken_again_in_the_middle_of_an_episode(device: torch.device) -> None:
    model = tiny_model().to(device)
    jobs = {row: (prompt_of(row % 2), row) for row in range(4)}
    right = play(make_engine(model, 4), jobs)
    engine = make_engine(model, 4)
    run = engine.run

    def freed() -> list[Generation]:
        engine.free()
        return run()

    engine.run = freed  # type: ignore[method-assign]
    found = play(engine, jobs)
    assert {row: episode.ids for row, episode in found.items()} == {row: episode.ids for row, episode in right.items()}


@pytest.mark.parametrize("active", [1, 5])
def test_fewer_active_rows_change_no_sample(active: int, device: torch.device) -> None:
    model = tiny_model().to(device)
    jobs = {row: (prompt_of(row % 2), row) for row in range(7)}
    right = play(make_engine(model, 7), jobs)
    found = play(make_engine(model, 7, active=active), jobs, waits=lambda seed, turn: seed % 3)
    assert {row: episode.ids for row, episode in found.items()} == {row: episode.ids for row, episode in right.items()}


def test_out_of_memory_halves_the_rows_and_changes_no_sample(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: torch.device
) -> None:
    model = tiny_model().to(device)
    jobs = {row: (prompt_of(row % 2), row) for row in range(16)}
    right = play(make_engine(model, 16), jobs)
    engine = make_engine(model, 16)
    feed = FusedDecoder.feed

    def small(self: Decoder, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> torch.Tensor:
        if len(rows) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return feed(self, rows, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(FusedDecoder, "feed", small)
    found = play(engine, jobs)
    assert {row: episode.ids for row, episode in found.items()} == {row: episode.ids for row, episode in right.items()}
    assert [record.args for record in caplog.records] == [(16, 8), (8, 4)]


def test_a_memory_too_small_for_all_rows_serves_them_in_turn_and_one_too_small_for_any_is_an_error() -> None:
    model = tiny_model()
    jobs = {row: (prompt_of(row % 2), row) for row in range(12)}
    right = play(make_engine(model, 12), jobs)
    token = 2 * 2 * 2 * 16 * 4
    found = play(make_engine(model, 12, memory=token * 256 * 20), jobs)
    assert {row: episode.ids for row, episode in found.items()} == {row: episode.ids for row, episode in right.items()}
    engine = make_engine(model, 12, memory=token * 500)
    engine.begin([0], [prompt_of(0)], [0])
    with pytest.raises(torch.OutOfMemoryError, match="max_episode_tokens"):
        engine.run()


@pytest.mark.parametrize("call", [1, 2, 7])
def test_memory_that_runs_out_while_tokens_are_drawn_changes_no_sample(
    monkeypatch: pytest.MonkeyPatch, call: int, device: torch.device
) -> None:
    model = tiny_model().to(device)
    jobs = {row: (prompt_of(row % 2), row) for row in range(6)}
    right = play(make_engine(model, 6), jobs)
    calls = iter(range(1, 1_000_000))

    def choose(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if next(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sampling.choose(*arguments)

    monkeypatch.setattr(engine_module, "choose", choose)
    found = play(make_engine(model, 6), jobs)
    assert {row: episode.ids for row, episode in found.items()} == {row: episode.ids for row, episode in right.items()}


@pytest.mark.parametrize("call", [1, 3, 8, 20])
def test_memory_that_runs_out_in_the_slow_decoder_changes_no_sample(call: int, device: torch.device) -> None:
    model = MODELS["gpt2"]().to(device)
    jobs = {row: (prompt_of(row % 2), row) for row in range(4)}
    right = play(make_engine(model, 4), jobs)
    engine = make_engine(model, 4)
    calls = iter(range(1, 1_000_000))

    def run_out(*_: Any) -> None:
        if next(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.transformer.h[1].register_forward_pre_hook(run_out)  # in the middle: the first layer's cache has grown
    found = play(engine, jobs)
    assert {row: episode.ids for row, episode in found.items()} == {row: episode.ids for row, episode in right.items()}


@pytest.mark.parametrize("temperature", [0, 1])
def test_weights_that_are_not_finite_are_an_error_until_they_are_replaced(
    temperature: float, device: torch.device
) -> None:
    model = tiny_model().to(device)
    engine = make_engine(model, 2, temperature=temperature)
    engine.begin([0, 1], [prompt_of(0)] * 2, [1, 2])
    right = [generation.ids.tolist() for generation in engine.run()]
    weight = model.model.layers[1].mlp.down_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    engine.refresh()
    engine.begin([0, 1], [prompt_of(0)] * 2, [1, 2])
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.run()
    with torch.no_grad():
        weight.copy_(kept)
    engine.refresh()
    engine.begin([0, 1], [prompt_of(0)] * 2, [1, 2])
    assert [generation.ids.tolist() for generation in engine.run()] == right


@pytest.mark.gpu
def test_bfloat16_on_a_gpu_samples_by_its_own_logprobs() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    model = tiny_model().to("cuda")
    sampling = Sampling(max_turn_tokens=12, max_episode_tokens=700)
    engine = Engine(model, tiny_tokenizer(), 64, sampling, (END,), ())
    episodes = play(engine, {row: (prompt_of(row // 8), row) for row in range(64)})
    assert max(error(model, episode, 1.0) for episode in episodes.values()) < 0.3


def test_misuse_is_refused_with_what_to_do() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="at least one row"):
        make_engine(model, 0)
    with pytest.raises(ValueError, match="at least one row"):
        make_engine(model, 1, active=0)
    engine = make_engine(model, 2)
    with pytest.raises(RuntimeError, match="begin or extend"):
        engine.run()
    with pytest.raises(ValueError, match=r"\[2\]"):
        engine.begin([2], [prompt_of(0)], [0])
    with pytest.raises(ValueError, match="differ"):
        engine.begin([1, 1], [prompt_of(0)] * 2, [0, 1])
    with pytest.raises(ValueError, match="1 rows, 1 prompts and 2 seeds"):
        engine.begin([0], [prompt_of(0)], [0, 1])
    with pytest.raises(ValueError, match="empty"):
        engine.begin([0], [Prompt((), 0)], [0])
    engine.begin([0], [prompt_of(0)], [0])
    with pytest.raises(ValueError, match="turn is over"):
        engine.extend([0], [[1]])
    engine.run()
    engine.release(0)
    engine.release(0)
    with pytest.raises(ValueError, match="turn is over"):
        engine.extend([0], [[1]])
