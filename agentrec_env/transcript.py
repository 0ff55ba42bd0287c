"""A session as text for people: what `render_mode="ansi"` shows.

The positive is marked only when the episode is over, so that a transcript shown to a model mid-way gives nothing away.
"""

from __future__ import annotations

from agentrec_env.prompts import item_name
from agentrec_env.session import Session

_RULE = "─" * 60


def transcript(session: Session) -> str:
    """The episode so far: the prompt, each action and what it brought, and at the end the judged list."""
    task, items = session.task, session.view.items
    parts = [f"{_RULE}\ntask {task.index} ({task.split})\n{_RULE}", session.prompt]
    for number, (action, _, observation) in enumerate(session.turns, 1):
        parts.append(f"── action {number} {_RULE[:40]}\n{action}")
        if observation:
            parts.append(observation)
    if session.stop is not None:
        lines = [f"── {session.stop} {_RULE[:40]}"]
        if session.error:
            lines.append(session.error)
        for place, item in enumerate(session.ranking, 1):
            mark = "  ← the positive" if item == task.target else ""
            lines.append(f"{place:3}. {item_name(items, item)}{mark}")
        if task.target not in session.ranking:
            lines.append(f"  –  {item_name(items, task.target)}  ← the positive, not in the list")
        terms = ", ".join(f"{name} {value:+.3f}" for name, value in session.terms.items() if value)
        lines.append(f"reward {session.reward:.3f} ({terms or 'no terms'}), {session.calls} tool calls")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
