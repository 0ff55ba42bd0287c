"""The way of a saved policy to the Hugging Face hub: `huggingface_hub` does it, with nothing in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from agents.llm.loading import PolicyLoadError

MARKS = ("config.json", "adapter_config.json")
"""Files of which a folder that holds a policy has one."""


def push_to_hub(
    folder: str | Path, repo_id: str, *, private: bool | None = None, token: str | None = None, **options: Any
) -> str:
    """Upload a folder that `Policy.save_pretrained` or a training run wrote, its card included.

    Args:
        folder: best/ or model/ of a run, say.
        repo_id: "name" or "organisation/name"; made where it is not there.
        private: Of a repository that is made; None: as the organisation has it.
        token: Of the account; None: as `hf auth login` or HF_TOKEN has it.
        options: Of `huggingface_hub.HfApi.upload_folder`: commit_message, revision, create_pr, ….

    Returns:
        The address of the commit.

    Raises:
        PolicyLoadError: The folder holds no policy.
        huggingface_hub.errors.HfHubHTTPError: What the hub answers.
    """
    folder = Path(folder).expanduser()
    if not any((folder / mark).is_file() for mark in MARKS):
        raise PolicyLoadError(
            f"{folder} holds no policy (none of {', '.join(MARKS)}); give best/ or model/ of a training run, or a "
            "folder that Policy.save_pretrained wrote"
        )
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    options = {"commit_message": "Upload a policy trained with AgentRec", **options}
    return str(api.upload_folder(repo_id=repo.repo_id, folder_path=folder, **options).commit_url)
