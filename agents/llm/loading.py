"""Models and tokenizers from folders and the Hugging Face hub, as data: no code of theirs runs and no pickle is read.

What goes wrong here goes wrong for every newcomer (a misspelt id, no network, weights in an old format), so each
failure says what was asked for, what is allowed and what to do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

TINY = Path(__file__).parent / "tiny"
"""The model that comes with the package."""

DTYPES = {"float32": torch.float32, "mixed": torch.float32, "bfloat16": torch.bfloat16}
"""Of the weights: "mixed" keeps them in float32 and multiplies in bfloat16."""

FILES = [
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "model*.safetensors",
    "adapter_model.safetensors",
    "value_head.safetensors",
]
"""What is downloaded of a model."""

_log = logging.getLogger(__name__)


class PolicyLoadError(ValueError):
    """A model that cannot be loaded or trained; the message says what to do."""


def locate(source: str | Path) -> Path:
    """The folder that `source` means; a model on the hub is downloaded into the hub's cache.

    Args:
        source: "tiny", a folder, or a hub id.

    Raises:
        PolicyLoadError: A folder that is not there or holds no model, or an id that the hub does not know or give.
    """
    if source == "tiny":
        if not (TINY / "config.json").is_file():
            raise PolicyLoadError(
                f"the embedded model is missing from {TINY}: install the package with its data, make it again with "
                "`python -m algos.sft`, or give a folder or a hub id"
            )
        return TINY
    path = Path(source).expanduser()
    if path.is_dir():
        if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
            raise PolicyLoadError(
                f"{path} holds no model: a folder has config.json and weights as *.safetensors (as save_pretrained "
                "writes them), or adapter_config.json and adapter_model.safetensors"
            )
        return path.resolve()
    if path.exists():
        raise PolicyLoadError(f"{path} is a file; give the folder that holds config.json and the weights")
    if (
        isinstance(source, Path)
        or path.is_absolute()
        or str(source).startswith((".", "~"))
        or str(source).count("/") > 1
    ):
        raise PolicyLoadError(f'there is no folder {path}; give a folder, a hub id such as "org/name", or "tiny"')
    return _download(str(source))


def _download(name: str) -> Path:
    """The hub's cached copy of what a model needs: data alone, neither code nor pickles."""
    online = _hub_answers()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=FILES, ignore_patterns=["*/*"], local_files_only=not online
            )
        )
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, LocalEntryNotFoundError) and not online:
            error = OSError(
                f"{ENDPOINT} cannot be reached from here, and the model is not in the cache {HF_HUB_CACHE}."
            )
        raise _failure("files", name, error) from error


def load_model(place: Path, dtype: str, device: torch.device) -> PreTrainedModel:
    """The causal language model in a folder, on `device`.

    Raises:
        PolicyLoadError: It is damaged, needs code of its own, has no safetensors, or lacks weights.
    """
    if dtype not in DTYPES:
        raise PolicyLoadError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    if dtype != "float32" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _log.warning('this CPU has no bfloat16 arithmetic, so dtype="%s" is slower here than "float32"', dtype)
    try:
        with no_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=DTYPES[dtype],
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise _failure("model", place, error) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise PolicyLoadError(
            f"{place} lacks weights of a {type(model).__name__} ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}): it is no causal language model, or the download is incomplete"
        )
    if device.type == "cpu":  # out of the mapped file, whose tensors begin anywhere
        for weight in model.parameters():
            weight.data = weight.data.clone()
    return model.to(device)  # type: ignore[no-any-return]


def load_tokenizer(place: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        PolicyLoadError: There is none that works without code of its own.
    """
    if not has_tokenizer(place):
        raise PolicyLoadError(f"{place} has no tokenizer; save it there with tokenizer.save_pretrained")
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise _failure("tokenizer", place, error) from error


def has_tokenizer(place: Path) -> bool:
    """Whether a folder has files of a tokenizer; without any, transformers makes up an empty one."""
    return any(any(place.glob(name)) for name in ("tokenizer*", "vocab*", "*.model"))


def adapter_base(folder: Path) -> str | None:
    """Source of the base model of the adapter in `folder`; None where it holds a whole model.

    Raises:
        PolicyLoadError: The adapter is damaged, or its weights are no safetensors.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    if not (folder / "adapter_model.safetensors").is_file():
        raise PolicyLoadError(f"{folder} has no adapter_model.safetensors; other formats can run code and are not read")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base, kind = config["base_model_name_or_path"], config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyLoadError(f"{path} is damaged: {error!r}") from None
    if kind != "LORA":
        raise PolicyLoadError(f"{folder} holds an adapter of kind {kind}; only LoRA is supported")
    if not isinstance(base, str) or not base:
        raise PolicyLoadError(f"{path} does not say which model it adapts; set base_model_name_or_path in it")
    return base


@contextmanager
def no_bars() -> Iterator[None]:
    """Without transformers' progress bars, which for small files are noise."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _hub_answers() -> bool:
    """Whether the hub can be reached: asked once, where the hub's own client would try for most of a minute."""
    if HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(ENDPOINT, timeout=5)
    except Exception:  # noqa: BLE001 - which errors these are depends on the version of the hub's client
        return False
    return True


def _failure(what: str, place: str | Path, error: Exception) -> PolicyLoadError:
    reason = " ".join(str(error).split())
    return PolicyLoadError(
        f"cannot load the {what} of {str(place)!r}: {reason[:400]}{'…' if len(reason) > 400 else ''}\n"
        'Give "tiny", a folder that save_pretrained wrote, or the id of a model on the Hugging Face hub (which needs a '
        "network, or the model in the local cache). Weights are read as safetensors only, and models that bring their "
        "own code are not run."
    )


def silence_dropout(model: Any) -> None:
    """Set every dropout to 0: a log-probability is then the same whenever it is computed."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(module, name, 0.0)
