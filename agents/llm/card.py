"""Model cards: the README.md beside a saved policy, with front matter that the Hugging Face hub reads.

A card that holds figures belongs to the very weights that were judged, so it goes along with those and no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

CARD = "README.md"
TAGS = ["agentrec", "recommendation", "tool-use"]
_BASE = re.compile(r"^base_model: *([\w.-]+/[\w.-]+) *$", re.MULTILINE)
_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")

_USE = """## How to use it
`FOLDER` is the folder of this file, or its id on the hub.

```bash
agentrec run --quick --only scripted pool-20 --model FOLDER    # judged beside other agents
agentrec train grpo --out runs/more --model FOLDER             # trained on
```
```python
{python}
```
"""
_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")"""
_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""


@dataclass(frozen=True)
class Card:
    """What is said of a policy beside what its files say."""

    title: str
    text: str
    """Markdown: what was measured and how it was made."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Metric -> value, for the front matter."""
    protocol: str = ""
    """What the figures were measured on: the dataset, its split, the pools."""
    tags: tuple[str, ...] = ()


PLAIN = Card(
    "A policy for AgentRec", "Saved as it was in memory: what it was trained on and what it is worth is not known."
)


def written(card: Card, origin: str | None, base: str) -> str:
    """The text of a model card.

    Args:
        card: What is to be said.
        origin: Id on the hub of the model that it was trained from; None where that has none.
        base: What the adapter is put on; "" where the folder holds a whole model.
    """
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Recommendation with tools",
            dataset_type="agentrec",
            dataset_name=card.protocol,
            metric_type=name,
            metric_value=round(value, 4),
        )
        for name, value in card.figures.items()
    ]
    data = ModelCardData(
        base_model=origin,
        library_name="peft" if base else "transformers",
        pipeline_tag="text-generation",
        tags=[*TAGS, *card.tags],
        model_name=card.title if results else None,
        eval_results=results or None,
    )
    python = _ADAPTER.format(base=base) if base else _WHOLE
    return f"---\n{data.to_yaml()}\n---\n# {card.title}\n\n{card.text.strip()}\n\n{_USE.format(python=python)}"


def kept(source: Path | None, folder: Path) -> str | None:
    """The card of the folder that a policy came from, where `folder` holds the same weights; else None."""
    if source is None or not (source / CARD).is_file() or not _same_weights(source, folder):
        return None
    return (source / CARD).read_text(encoding="utf-8")


def origin_of(place: Path) -> str | None:
    """Id on the hub of what the model in a folder was trained from, as its card says; None where it says nothing."""
    text = (place / CARD).read_text(encoding="utf-8", errors="replace") if (place / CARD).is_file() else ""
    head = text.partition("\n---\n")[0]
    found = _BASE.search(head) if head.startswith("---\n") else None
    return found[1] if found else None


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same numbers, whatever their type."""
    names = [sorted(path.name for pattern in _WEIGHTS for path in folder.glob(pattern)) for folder in (one, other)]
    if names[0] != names[1] or not names[0]:
        return False
    for name in names[0]:
        with safe_open(one / name, "pt") as ours, safe_open(other / name, "pt") as theirs:
            if sorted(ours.keys()) != sorted(theirs.keys()):
                return False
            for key in ours.keys():  # noqa: SIM118 - no mapping
                mine, yours = ours.get_tensor(key).float(), theirs.get_tensor(key).float()
                if not torch.equal(mine, yours):
                    return False
    return True
