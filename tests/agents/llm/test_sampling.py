"""Random numbers that depend on seed and position alone, and draws with the right probabilities."""

from __future__ import annotations

import pytest
import torch

from agents.llm.sampling import Sampling, choose, uniform

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    """The output function of splitmix64, in whole numbers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def reference(seed: int, position: int) -> float:
    golden = 0x9E3779B97F4A7C15
    state = splitmix((seed + golden) & MASK)
    return (splitmix((state + (position + 1) * golden) & MASK) >> 11) / 2**53


def test_random_numbers_are_splitmix(device: torch.device) -> None:
    pairs = [(0, 0), (0, 1), (1, 0), (123456789, 4095), (2**63 - 1, 7), (-5, 3)]
    seeds, positions = (torch.tensor(part, device=device) for part in zip(*pairs, strict=True))
    assert uniform(seeds, positions).tolist() == [reference(seed & MASK, position) for seed, position in pairs]


def test_random_numbers_are_uniform_along_seeds_and_positions() -> None:
    many = torch.arange(20_000)
    for numbers in (uniform(many, torch.full_like(many, 5)), uniform(torch.full_like(many, 5), many)):
        counts = torch.histc(numbers.float(), bins=20, min=0, max=1)
        chi_square = float(((counts - 1000) ** 2 / 1000).sum())
        assert chi_square < 45  # 19 degrees of freedom: 0.1 % lie above 43.8
        assert abs(float(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1])) < 0.03


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 1.0), (1.0, 0.8)])
def test_draws_have_the_probabilities_of_the_distribution(
    temperature: float, top_p: float, device: torch.device
) -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0, -torch.inf, 0.0], device=device)
    count = 40_000
    uniforms = uniform(torch.arange(count, device=device), torch.zeros(count, dtype=torch.int64, device=device))
    sampling = Sampling(temperature=temperature, top_p=top_p)
    ids, logprobs = choose(logits.expand(count, -1), sampling, uniforms)
    full = torch.log_softmax(logits / temperature, dim=-1)
    torch.testing.assert_close(logprobs, full[ids])
    expected = full.exp()
    if top_p < 1:
        expected = torch.where(torch.tensor([True, False, True, True, False, False], device=device), expected, 0)
        expected /= expected.sum()
    frequencies = torch.bincount(ids, minlength=len(logits)) / count
    assert float((frequencies - expected).abs().max()) < 0.01
    assert not frequencies[expected == 0].any()


def test_the_ends_of_the_interval_draw_tokens_that_are_possible() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 0.0, -torch.inf], [-torch.inf, 1.0, 0.0, -torch.inf]])
    ids, _ = choose(logits, Sampling(), torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))
    assert ids.tolist() == [1, 2]


def test_top_p_keeps_the_token_that_reaches_it_and_always_one() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    uniforms = torch.linspace(0, 0.999, 200, dtype=torch.float64)
    for top_p, kept in ((0.01, {0}), (0.5, {0}), (0.51, {0, 1}), (0.8, {0, 1}), (0.81, {0, 1, 2})):
        ids, _ = choose(logits.expand(200, -1), Sampling(top_p=top_p), uniforms)
        assert set(ids.tolist()) == kept


def test_temperature_0_takes_the_likeliest_at_its_probability() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 2.0]])
    ids, logprobs = choose(logits, Sampling(temperature=0), torch.tensor([0.9, 0.9], dtype=torch.float64))
    assert ids.tolist() == [1, 0]
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, dim=-1)[[0, 1], ids])


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"max_turn_tokens": 0},
        {"max_episode_tokens": 0},
    ],
)
def test_impossible_settings_are_refused_by_name(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Sampling(**given)  # type: ignore[arg-type]
