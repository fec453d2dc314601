"""Fetch what a run reads from the hub: ``python -m ftdist.model.fetch - [--data]`` (config on standard input).

The model and the tokenizer are written into the cache of the hub, from which the ranks load them without a network.
With ``--data``, the program also checks that the hub has the data sets of the run. ``ftdist.data.main`` reads them.
"""

from ftdist.base.collector import pause_collector, resume_collector

if __name__ == "__main__":
    pause_collector()

import sys
import time
from typing import List, Sequence

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from ftdist.base.counts import count
from ftdist.base.errors import EXIT_DONE, EXIT_UNREACHABLE, ConfigError
from ftdist.base.main import run_main
from ftdist.base.output import accept_any_text, read_config_text
from ftdist.base.permissions import MESSAGES, explain_os_error
from ftdist.config.frozen import parse_config
from ftdist.config.schema import RunConfig
from ftdist.plan.disk import size_text
from ftdist.run.hub import Repository, fetched_folder, repositories, require_writable_hub_cache

SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
REFUSED = (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError)
"""Errors for a wrong name, a wrong revision, or a user without access."""


class Unreachable(Exception):
    """The hub does not answer."""


def wanted_files(names: Sequence[str], holds_model: bool) -> List[str]:
    """Return the files of a repository that transformers may load.

    Args:
        names: All its files.
        holds_model: Whether the weights are needed: those in safetensors, or else in PyTorch's format.
    """
    small = [name for name in names if name.endswith(SMALL) and (
        "/" not in name or name.endswith(".py") or name.startswith("additional_chat_templates/"))]  # fmt: skip
    if not holds_model:
        return small
    for kind, start in ((".safetensors", "model"), (".bin", "pytorch_model")):
        weights = [name for name in names if name.startswith(start) and name.endswith(kind) and "/" not in name]
        if weights:
            return small + weights
    return small


def fetch(repository: Repository) -> str:
    """Fetch a repository into the cache of the hub, and return one line that says what was done.

    Raises:
        ConfigError: The hub has no such repository or revision, or the user has no access.
        Unreachable: The hub does not answer, and the cache lacks a file.
        FtdistError: The cache lacks a file, and cannot be written.
    """
    started, before = time.monotonic(), fetched_folder(repository)
    if before is None:
        require_writable_hub_cache(repository)
    try:
        info = HfApi().model_info(repository.name, revision=repository.revision, files_metadata=True, timeout=20)
        names = wanted_files([file.rfilename for file in info.siblings or []], repository.holds_model)
        snapshot_download(repository.name, revision=repository.revision or "main", allow_patterns=names)
    except REFUSED as error:
        raise _refused(repository.key, repository.name, error) from error
    except Exception as error:  # no network, a proxy, an answer that is not the hub's: libraries raise many kinds
        if before is None and isinstance(error, OSError) and error.errno in MESSAGES:  # a full disk, not the network
            raise explain_os_error(error) from error
        if before is None:
            raise Unreachable(f"{repository.key}={repository.name}: {_first_line(error)}") from error
        return f"{repository.name}: found in {before} (the hub did not answer: {_first_line(error)})"
    folder = fetched_folder(repository)
    if folder is None:
        lacks = "config.json with weights" if repository.holds_model else "tokenizer"
        raise ConfigError(f"{repository.key}={repository.name} has no {lacks}",
                          "a repository that transformers can load", f"{repository.key}=ORG/NAME")  # fmt: skip
    size = size_text(sum(file.size or 0 for file in info.siblings or [] if file.rfilename in names))
    fetched = f"{count(len(names), 'file')}, {size}, fetched in {time.monotonic() - started:.1f} s"
    how = "found" if before == folder else fetched
    return f"{repository.name} at {folder.name}: {how} in {folder}"


def look_for_data(config: RunConfig) -> None:
    """Check that the hub answers for the data sets of a run.

    Raises:
        ConfigError: The hub has no such data set or revision, or the user has no access.
        Unreachable: It does not answer.
    """
    for kind, sources in (("sources", config.data.sources), ("heldout", config.data.heldout)):
        for name, source in sources.items():
            if source.hub:
                key = f"data.{kind}.{name}.hub"
                try:
                    HfApi().dataset_info(source.hub, revision=source.revision, timeout=20)
                except REFUSED as error:
                    raise _refused(key, source.hub, error) from error
                except Exception as error:  # see above
                    raise Unreachable(f"{key}={source.hub}: {_first_line(error)}") from error


def _refused(key: str, name: str, error: Exception) -> ConfigError:
    return ConfigError(f"{key}={name}: {_first_line(error)}", "a name and revision on the hub that you have access to",
                       f"check {key} and its revision, or log in with `hf auth login`")  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def main() -> int:
    """Run the program. Returns the exit code, ``EXIT_UNREACHABLE`` if the hub does not answer."""
    return run_main(_fetch_all)


def _fetch_all() -> int:
    config = parse_config(read_config_text(), "standard input")
    try:
        for repository in repositories(config):
            print(f"{'model' if repository.holds_model else 'tokenizer':10} {fetch(repository)}", flush=True)
        if "--data" in sys.argv:
            look_for_data(config)
    except Unreachable as error:
        print(f"the hub cannot be reached from this machine: {error}", file=sys.stderr)
        return EXIT_UNREACHABLE
    return EXIT_DONE


if __name__ == "__main__":
    resume_collector()
    accept_any_text()
    sys.exit(main())
