"""`--push`: upload a folder to a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from ilora.errors import IloraError, InputError
from ilora.handover.source import is_hub_id


def check(repository: str) -> None:
    """Raises InputError, before anything is made, for a name that is none, or where nobody is logged in."""
    if "/" not in repository or not is_hub_id(repository):
        raise InputError(f"--push {repository}: give OWNER/NAME")
    if get_token() is None:
        raise InputError("--push: no token of the hub; `hf auth login` keeps one, or set HF_TOKEN")


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Make the repository where it is missing, and upload the folder as one commit. Returns the commit's address.

    Raises IloraError with what the hub says; the folder stays.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=_MESSAGE).commit_url)
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        why = {401: "the hub does not know the token", 403: f"the token may not write to {repository}"}.get(code or 0)
        raise IloraError(_failed(folder, repository, why or str(error).strip().splitlines()[0])) from error
    except (OSError, ValueError) as error:
        raise IloraError(_failed(folder, repository, str(error))) from error


_MESSAGE = "Upload with ilora export"


def _failed(folder: Path, repository: str, why: str) -> str:
    return f"--push {repository}: {why}. {folder} is complete: `hf upload {repository} {folder}` tries again"
