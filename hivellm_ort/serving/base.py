"""A base model in memory, shared by experts."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from hivellm_ort.contract import ADAPTER_GRAPH, BASE_GRAPH, WEIGHTS_FILE, DecoderConfig
from hivellm_ort.decoding.bad_words import TokenTexts
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.devices import Placement
from hivellm_ort.engine.session import PREFIX_CACHE_BYTES, Engine
from hivellm_ort.grammar.compiler import GrammarCompiler
from hivellm_ort.jsonfiles.node import Node
from hivellm_ort.jsonfiles.reading import read_json
from hivellm_ort.serving.scheduler import Scheduler
from hivellm_ort.text.template import ChatTemplate
from hivellm_ort.text.template_source import TemplateSource, read_template_source
from hivellm_ort.text.tokenizer import TextTokenizer
from hivellm_ort.text.tokenizer_file import Recall

__all__ = ["Base"]


class Base:
    """A loaded base bundle: everything that does not depend on the expert.

    Args:
        folder: The bundle.
        config: Its `decoder.json`.
        placement: Its provider and device.
        threads: Intra-op threads; None for the default of ONNX Runtime.
        prefix_cache_bytes: Most bytes of keys and values in the prefix cache.
        recall: Records which tokenizers are within the limits; None checks each time.

    Attributes:
        engine: Its sessions.
        tokenizer: Its tokenizer.
        template: Its chat template.
        eos_token_ids: The tokens that end an answer.
        grammars: Compiles grammars for its vocabulary.
        scheduler: Runs its requests.
    """

    def __init__(
        self,
        folder: Path,
        config: DecoderConfig,
        *,
        placement: Placement,
        threads: int | None,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
        recall: Recall | None = None,
    ):
        self.tokenizer = TextTokenizer.from_folder(folder, recall=recall)
        self._template_source = read_template_source(folder)
        self.template = ChatTemplate.from_source(self._template_source, self.tokenizer)
        self.eos_token_ids = _eos_token_ids(folder, config.architecture.vocab_size)
        self.grammars = GrammarCompiler(self.tokenizer.to_json, config.architecture.vocab_size)
        self.engine = Engine(folder, config, placement=placement, threads=threads)
        self.engine.start()  # no file of the folder is read later
        self.engine.prefixes.resize(prefix_cache_bytes)
        self.scheduler = Scheduler(self.engine, adapters=config.merged is None)

    @property
    def config(self) -> DecoderConfig:
        """The bundle's `decoder.json`."""
        return self.engine.config

    def compile_template(self, own: TemplateSource) -> ChatTemplate | None:
        """Compile an expert's own chat template. Special tokens that it does not define are those of the base.

        Returns:
            The template; None if the expert has none, or has that of the base.

        Raises:
            LoadError: The template does not compile.
        """
        base = self._template_source
        tokens = {**base.tokens, **own.tokens}
        same = (own.source, own.tool_use, tokens) == (base.source, base.tool_use, base.tokens)
        return None if own.file is None or same else ChatTemplate.from_source(replace(own, tokens=tokens))

    @cached_property
    def no_adapter(self) -> BoundAdapter | None:
        """The empty adapter, for requests to the base itself; None if an adapter is merged into the base."""
        return BoundAdapter.none(self.config) if self.config.merged is None else None

    @cached_property
    def token_texts(self) -> TokenTexts:
        """The tokens of the model by their texts; built for the first request that needs them."""
        return TokenTexts(self.tokenizer.token_bytes[: self.config.architecture.vocab_size])

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, as the files of the graph and the tensors on disk."""
        graph = ADAPTER_GRAPH if self.config.merged is None else BASE_GRAPH
        return sum(self.config.files[name].size for name in (graph, WEIGHTS_FILE))

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values, of running requests and in the prefix cache."""
        return self.scheduler.nbytes + self.engine.prefixes.nbytes

    def release(self, adapter: BoundAdapter) -> None:
        """Drop everything that is cached for an adapter, so that its memory can be freed."""
        self.scheduler.release(adapter)
        self.engine.prefixes.clear(adapter.digest)

    def close(self) -> None:
        """Free the session and buffers after all running requests have ended."""
        self.scheduler.close()
        self.engine.close()


def _eos_token_ids(folder: Path, vocab_size: int) -> frozenset[int]:
    """Return `eos_token_id` of `generation_config.json`, which is an id or a list of ids.

    Raises:
        ManifestError: The file cannot be read, or an id is not in the vocabulary.
    """
    path, key = folder / "generation_config.json", "eos_token_id"
    document = read_json(path)
    node, value = Node(document, path.name), document.get(key)
    if value is None:
        node.fail(key, "missing; export again")
    for token_id in value if isinstance(value, list) else [value]:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            node.fail(key, f"must be token ids from 0 to {vocab_size - 1}; export again")
    return frozenset(value if isinstance(value, list) else [value])
