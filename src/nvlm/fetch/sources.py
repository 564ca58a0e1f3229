"""What conf/data/sources.yaml says: where a dataset's files are to be had, and what they should be.

A source is a directory of files, ``data/raw/NAME``. Several datasets may read one: six are about
the pictures of COCO's train2014.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from nvlm.fetch.archives import safe_name
from nvlm.fetch.hub import Kind
from nvlm.fetch.web import Digests

EVERYTHING = "*"


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Files of a repository on the Hub, which lists sizes and digests."""

    repo: str  # OWNER/NAME
    # A commit, or a branch: the first fetch writes its commit into the lock.
    revision: str
    files: list[str]  # patterns of paths in the repository; [ stands for itself
    kind: str = "dataset"  # or model

    def __post_init__(self) -> None:
        if self.kind not in ("dataset", "model"):
            raise ValueError(f"kind: dataset or model, not {self.kind!r}")
        if self.repo.count("/") != 1 or not self.revision or not self.files:
            raise ValueError("repo: OWNER/NAME, with a revision and at least one pattern of files")

    @property
    def repository_kind(self) -> Kind:
        """``kind``, as the Hub's client takes it."""
        return "model" if self.kind == "model" else "dataset"


@dataclass(frozen=True, kw_only=True)
class GitHubFiles:
    """Files of a repository on GitHub, which lists sizes and digests of a commit's files."""

    repo: str
    revision: str
    files: list[str]  # patterns of paths in the repository

    def __post_init__(self) -> None:
        if self.repo.count("/") != 1 or not self.revision or not self.files:
            raise ValueError("repo: OWNER/NAME, with a revision and at least one pattern of files")


@dataclass(frozen=True, kw_only=True)
class WebFile:
    """A file on a web server. Without a digest the first fetch writes one into the lock."""

    url: str
    path: str = ""  # in the source's directory; "" = the address's last part
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    git_blob: str | None = None

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"url: {self.url!r} should begin with https:// or http://")
        if not safe_name(self.name):
            raise ValueError(f"path: {self.name!r} leads out of the source's directory")
        for name, length in (("sha256", 64), ("md5", 32), ("git_blob", 40)):
            value = getattr(self, name)
            if value is not None and not (
                len(value) == length and set(value) <= set("0123456789abcdef")
            ):
                raise ValueError(f"{name}: {length} hex digits, not {value!r}")

    @property
    def name(self) -> str:
        """Where the file lies in the source's directory."""
        return self.path or PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def expected(self) -> Digests:
        """What is written about the file's content."""
        return Digests(bytes=self.bytes, sha256=self.sha256, md5=self.md5, git_blob=self.git_blob)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive among the files, which is unpacked and then removed."""

    into: str = "."  # directory within the source's
    members: list[str] = field(default_factory=lambda: [EVERYTHING])  # patterns

    def __post_init__(self) -> None:
        if not safe_name(self.into):
            raise ValueError(f"into: {self.into!r} leads out of the source's directory")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One entry of ``data.sources``."""

    licence: str  # of the data; "unknown" where no page says
    hub: HubFiles | None = None
    github: GitHubFiles | None = None
    web: list[WebFile] = field(default_factory=list)
    # Pattern of a fetched file -> what to do with the archive. Others stay as they are: pictures
    # are read from .zip and .tar.
    unpack: dict[str, Archive] = field(default_factory=dict)
    gated: bool = False  # whether a token of an account that accepted its terms is needed
    # Why nothing can fetch it, where to ask for it, and what stands in for it.
    unavailable: str = ""
    address: str = ""
    instead: str = ""
    note: str = ""  # how it differs from what the paper must have read

    def __post_init__(self) -> None:
        places = [self.hub is not None, self.github is not None, bool(self.web)]
        if any(places) == bool(self.unavailable):
            raise ValueError("hub, github, web: at least one place, or else why it is unavailable")
        if not self.licence:
            raise ValueError('licence: "unknown" where nobody says')
        names = [file.name for file in self.web]
        if len(set(names)) < len(names):
            raise ValueError(f"web: two files of one name among {names}: give them a path")

    @property
    def why_unavailable(self) -> str:
        """Why nothing can fetch it, where to ask for it, and what stands in for it."""
        address = f" ({self.address})" if self.address else ""
        instead = f"; {self.instead} stands in for it" if self.instead else ""
        return f"{self.unavailable}{address}{instead}"
