"""Reads `decoder.json` once, strictly, into typed records."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.contract.architecture import Architecture
from hivellm_ort.contract.fields import (
    AGAIN,
    digest,
    entries,
    objects,
    optional_digest,
    shortened,
    text,
    unique,
    whole,
)
from hivellm_ort.contract.graph_config import GraphConfig
from hivellm_ort.contract.names import (
    ADAPTER_GRAPH,
    BASE_GRAPH,
    CONTRACT_VERSION,
    DECODER_JSON,
    WEIGHTS_FILE,
)
from hivellm_ort.contract.sites import Site, StoredWeights
from hivellm_ort.errors import IntegrityError, ManifestError
from hivellm_ort.filenames import is_system_file, member_name, shown
from hivellm_ort.jsonfiles.node import Node, report_on
from hivellm_ort.jsonfiles.reading import parse_json, read_bytes
from hivellm_ort.paths import StrPath

__all__ = ["DecoderConfig", "FileRecord"]

_VERSION = re.compile(r"([0-9]{1,4})\.[0-9]{1,4}")
_MAX_FILE_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and digest of one file of a bundle.

    Attributes:
        size: Bytes.
        sha256: Hex digest of the bytes.
    """

    size: int
    sha256: str

    @classmethod
    def read(cls, node: Node) -> FileRecord:
        """Read one entry of `files`.

        Raises:
            ManifestError: A field is missing, or of another type or range.
        """
        return cls(whole(node, "size", 0, _MAX_FILE_BYTES), digest(node, "sha256"))


@dataclass(frozen=True)
class DecoderConfig:
    """The content of `decoder.json`: the description of a base bundle.

    Attributes:
        name: The base model's short name.
        architecture: Its dimensions.
        precision: `fp32`, `fp16`, `bf16`, `int8`, `w8a8` or `int4`.
        target: The device that the graphs were lowered for: `cpu`, `cuda`, `dml` or `portable`.
        sites: The linear modules that take adapters; empty in a merged bundle, which has no adapter graph.
        source_sha256: Digest of the weights the bundle was made from; an adapter prepared from the same weights
            fits every bundle of that source.
        merged: Digest of the adapter folded into the weights, or None.
        files: Every other file of the bundle, by its name.
        weights: For every site, where its weights are; absent before contract 1.2, and empty where they are not
            float32.
        half_weights: The same where floats are of `graph.activation_dtype`, of two bytes each; since contract 1.3.
        embeddings: SHA-256 of the embedding and the LM head as little-endian float32 [vocab_size, hidden_size], by
            their Hugging Face names, before they were quantised: an adapter that stores them too is compared with
            it; since contract 1.7.
        graph: How to run the graphs. Before contract 1.3 it is absent and means `cpu`.
        contract_version: Version of this contract.
        sha256: Digest of the file it was read from, the bundle's name in the store; not part of the file.
    """

    name: str
    architecture: Architecture
    precision: str
    target: str
    sites: tuple[Site, ...]
    source_sha256: str
    merged: str | None = None
    files: Mapping[str, FileRecord] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, StoredWeights] = dataclasses.field(default_factory=dict)
    half_weights: Mapping[str, StoredWeights] = dataclasses.field(default_factory=dict)
    embeddings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    graph: GraphConfig = dataclasses.field(default_factory=GraphConfig)
    contract_version: str = CONTRACT_VERSION
    sha256: str = ""

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer: the smaller limit of model and graphs."""
        return min((self.architecture.max_position_embeddings, *self.graph.shapes.get("max_length", ())))

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the bundle's graphs. A merged bundle has no adapter graph."""
        return (BASE_GRAPH,) if self.merged is not None else (BASE_GRAPH, ADAPTER_GRAPH)

    def to_bytes(self) -> bytes:
        """Return the file's content: sorted keys, two spaces, a final newline."""
        document = dataclasses.asdict(self)
        del document["sha256"]
        return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_file(cls, path: StrPath) -> DecoderConfig:
        """Read `decoder.json`. Unknown keys are ignored: a later minor version may add some.

        Raises:
            ManifestError: The file is missing, is not JSON, has a newer contract, or a field of it is missing, of
                another type, or out of range; the message has its JSON pointer.
            IntegrityError: It lists a file outside the bundle.
        """
        path = Path(path)
        if not path.is_file():
            raise ManifestError(f"{path.name} is missing: this folder is not a base bundle")
        return _read(read_bytes(path), path.name)


@functools.lru_cache(maxsize=8)  # a load looks at the same file several times
def _read(content: bytes, where: str) -> DecoderConfig:
    document = parse_json(content, where)
    node = Node(document, report_on(document, where, cure=AGAIN))
    _check_version(node)
    config = DecoderConfig(
        name=text(node, "name"),
        architecture=Architecture.read(_required(node, "architecture")),
        precision=text(node, "precision"),
        target=text(node, "target"),
        sites=tuple(map(Site.read, objects(node, "sites"))),
        source_sha256=digest(node, "source_sha256"),
        merged=optional_digest(node, "merged"),
        files={_inside(node, name): FileRecord.read(entry) for name, entry in entries(node, "files")},
        weights={name: StoredWeights.read(entry) for name, entry in entries(node, "weights")},
        half_weights={name: StoredWeights.read(entry) for name, entry in entries(node, "half_weights")},
        embeddings=_digests(node, "embeddings"),
        graph=GraphConfig() if (form := node.child("graph")) is None else GraphConfig.read(form),
        contract_version=text(node, "contract_version"),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    _check_whole(node, config)
    return config


def _check_version(node: Node) -> None:
    version, own = text(node, "contract_version"), CONTRACT_VERSION
    found = _VERSION.fullmatch(version)
    if found is None or found[1] != own.split(".")[0]:
        node.fail(
            "contract_version",
            f"is {shortened(version)}, this runtime reads {own}; {AGAIN} with a matching hivellm-ort",
        )


def _check_whole(node: Node, config: DecoderConfig) -> None:
    """Refuse fields that contradict each other.

    Raises:
        ManifestError: Two fields contradict each other.
    """
    for name in (*config.graphs, WEIGHTS_FILE):
        if name not in config.files:
            node.fail("files", f"{name} is missing; {AGAIN}")
    if config.merged is not None and (config.sites or config.weights or config.half_weights):
        node.fail("sites", f"a bundle with a merged adapter takes no others; {AGAIN}")
    unique(node, "sites", (site.name for site in config.sites))
    unique(node, "sites", (part.module for site in config.sites for part in site.parts))
    for site, own in zip(config.sites, objects(node, "sites"), strict=True):
        if site.modules != tuple(part.module for part in site.parts):
            own.fail("parts", f"{shown(site.name)} has other modules than its name tells; {AGAIN}")
        for part in site.parts:
            features = config.architecture.features(part.module)
            if features not in (None, (site.in_features, part.size)):
                own.fail(
                    "parts",
                    f"{shown(part.module)} takes {site.in_features} features and gives {part.size}, by "
                    f"/architecture it takes {features[0]} and gives {features[1]}; {AGAIN}",
                )
    size = config.files[WEIGHTS_FILE].size
    for key in ("weights", "half_weights"):
        for name, stored in getattr(config, key).items():
            if max(stored.offsets) >= size:
                node.fail(key, f"{shown(name)} begins behind the {size} bytes of {WEIGHTS_FILE}; {AGAIN}")


def _required(node: Node, key: str) -> Node:
    found = node.child(key)
    if found is None:
        node.fail(key, f"missing; {AGAIN}")
    return found


def _digests(node: Node, key: str) -> dict[str, str]:
    own = node.child(key)
    return {} if own is None else {name: digest(own, name) for name in own.names()}


def _inside(node: Node, name: str) -> str:
    """Return a file name of a bundle, if it stays inside the bundle.

    Raises:
        IntegrityError: It does not.
    """
    try:
        if member_name(name) == name and name != DECODER_JSON and not is_system_file(name):
            return name
    except IntegrityError:
        pass
    raise IntegrityError(f"{DECODER_JSON}: /files: {shown(name)} is not a file inside the bundle; {AGAIN}")
