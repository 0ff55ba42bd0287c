"""What the episodes of a step were like: how they ended and why, what they called, how long they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agentrec_env.actions import parse
from agentrec_env.session import Rules
from agentrec_env.types import Episode, Invalid, StopReason
from algos.tally import Tally


def behaviour(episodes: Sequence[Episode], lost: int, rules: Rules) -> Tally:
    """Means over episodes of one rank.

    Args:
        episodes: E finished episodes of a language model.
        lost: Episodes that ended by a fault, beside these.
        rules: Of the environment.

    Returns:
        `ndcg@10`, `hit@1`, and `missed`, the share of valid lists without the positive; of pair tasks in their place
        `pair/right`, the share of right answers; `invalid`, a share; `stop/<reason>`, shares;
        `why/<code>`, shares of the last actions that were no actions, and of budgets that ran out; `turns`, `tokens`,
        `calls`, `calls/<tool>`, a mean an episode; `no_calls`, the share of episodes without any; `first/<tool>`,
        shares of the others; `lost`, a share.
    """
    tally = Tally()
    count = float(len(episodes))
    tally.add("lost", lost, count + lost)
    pairs = rules.mode == "pair"
    for metric, name in {"hit@1": "pair/right"}.items() if pairs else {"ndcg@10": "ndcg@10", "hit@1": "hit@1"}.items():
        tally.add(name, sum(episode.metrics.get(metric, 0.0) for episode in episodes), count)
    stops = Counter(str(episode.stop) for episode in episodes)
    tally.add_shares("stop", stops, count)
    tally.add_shares("why", Counter(why for episode in episodes if (why := _why(episode, rules)) is not None), count)
    tally.add("invalid", count - stops[str(StopReason.ANSWERED)], count)
    if not pairs:
        missed = sum(episode.stop is StopReason.ANSWERED and episode.rank is None for episode in episodes)
        tally.add("missed", missed, count)
    tally.add("turns", sum(len(episode.turns) for episode in episodes), count)
    tally.add("tokens", sum(int(episode.info.get("tokens", 0)) for episode in episodes), count)
    tally.add("calls", sum(episode.calls for episode in episodes), count)
    tally.add("no_calls", sum(not episode.calls for episode in episodes), count)
    none = dict.fromkeys(rules.tools, 0)
    called = Counter(none | Counter(call.name for episode in episodes for turn in episode.turns for call in turn.calls))
    first = Counter(none | Counter(tool for episode in episodes if (tool := _first(episode)) is not None))
    tally.add_shares("calls", called, count)
    tally.add_shares("first", first, sum(first.values()))
    return tally


def _first(episode: Episode) -> str | None:
    return next((call.name for turn in episode.turns for call in turn.calls), None)


def _why(episode: Episode, rules: Rules) -> str | None:
    """A short name of what was wrong."""
    if episode.stop is StopReason.OVERFLOW:
        return str(episode.info.get("stop", "overflow"))
    if episode.stop is not StopReason.INVALID or not episode.turns:
        return None
    action = parse(episode.turns[-1].action, rules.num_candidates, rules.mode)
    if isinstance(action, Invalid):
        return action.code
    return "unknown_tool" if isinstance(action, list) else "unknown_item"
