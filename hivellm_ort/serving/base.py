"""A base model in memory, as experts share it."""

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
    """Everything of a base bundle that does not depend on the expert.

    Args:
        folder: The bundle.
        config: Its `decoder.json`.
        placement: Where it runs.
        threads: Intra-op threads; None leaves it to ONNX Runtime.
        prefix_cache_bytes: Most bytes of keys and values that are kept of earlier prompts.
        recall: Remembers which tokenizers are within the limits; None checks each time.

    Attributes:
        engine: Its sessions.
        tokenizer: Its tokenizer.
        template: Its chat template.
        eos_token_ids: Every token that ends an answer.
        grammars: Compiles grammars for its vocabulary.
        scheduler: Answers its requests.
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
        self.engine.start()  # nothing of the folder is read later
        self.engine.prefixes.resize(prefix_cache_bytes)
        self.scheduler = Scheduler(self.engine, adapters=config.merged is None)

    @property
    def config(self) -> DecoderConfig:
        """The bundle's `decoder.json`."""
        return self.engine.config

    def compile_template(self, own: TemplateSource) -> ChatTemplate | None:
        """The chat template that an expert brings, with the base's special tokens where it names none.

        Returns:
            The template; None where the expert brings none, or that of the base.

        Raises:
            LoadError: The template does not compile.
        """
        base = self._template_source
        tokens = {**base.tokens, **own.tokens}
        same = (own.source, own.tool_use, tokens) == (base.source, base.tool_use, base.tokens)
        return None if own.file is None or same else ChatTemplate.from_source(replace(own, tokens=tokens))

    @cached_property
    def no_adapter(self) -> BoundAdapter | None:
        """What requests to the base itself bind; None where an adapter is merged, and the base no more itself."""
        return BoundAdapter.none(self.config) if self.config.merged is None else None

    @cached_property
    def token_texts(self) -> TokenTexts:
        """The tokens that the model can write, by their texts; made for the first request that needs them."""
        return TokenTexts(self.tokenizer.token_bytes[: self.config.architecture.vocab_size])

    @property
    def nbytes(self) -> int:
        """Memory of its weights: the bytes of the graph and the tensors on disk."""
        graph = ADAPTER_GRAPH if self.config.merged is None else BASE_GRAPH
        return sum(self.config.files[name].size for name in (graph, WEIGHTS_FILE))

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values: of running requests, and kept of earlier ones."""
        return self.scheduler.nbytes + self.engine.prefixes.nbytes

    def release(self, adapter: BoundAdapter) -> None:
        """Let go of what is kept for an adapter, so that its memory can be freed."""
        self.scheduler.release(adapter)
        self.engine.prefixes.clear(adapter.digest)

    def close(self) -> None:
        """Free the session and buffers; answers that are being generated end first."""
        self.scheduler.close()
        self.engine.close()


def _eos_token_ids(folder: Path, vocab_size: int) -> frozenset[int]:
    """Every token that `generation_config.json` ends answers with: an id, or a list of ids.

    Raises:
        ManifestError: The file cannot be read, or one is none of the vocabulary's.
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
