"""Compare an export with transformers, PEFT and the files that it was made from."""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from hivellm_export.base_model import BaseModel
from hivellm_export.libraries import only_errors
from hivellm_export.verify.adapters import check_adapter, load_peft, merged_by_peft
from hivellm_export.verify.answers import PROMPTS, Answers, Pass, bundle_pass, prompts, reference_pass
from hivellm_export.verify.report import Bound, Verification, bound_of
from hivellm_export.verify.rotary import check_rotary
from hivellm_export.verify.source import GgufSource, open_source
from hivellm_export.verify.tokens import check_tokenizer
from hivellm_export.verify.weights import Array, BundleWeights, check_weights, compare
from hivellm_ort import Expert
from hivellm_ort.contract import DECODER_JSON, DecoderConfig, Site
from hivellm_ort.engine.adapters import BoundAdapter
from hivellm_ort.engine.devices import Device, choose_placement
from hivellm_ort.engine.session import Engine
from hivellm_ort.errors import ExpertError, ExportError, InferenceError
from hivellm_ort.progress import progress_bar
from hivellm_ort.text.tokenizer import TextTokenizer
from hivellm_ort.textfile import decode_text

__all__ = ["Exported", "verify"]

_REFERENCES = "references.jsonl"  # prompts that the author of an expert has recorded
_EXAMPLES = 2
_OWN = ("cpu", "portable")  # targets whose graphs must run on the CPU provider
_EXACT = Bound(kl=0, error=1e-6, scale=1e-6, layer=0)
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

_T = TypeVar("_T")
Results = tuple[list[Verification], list[list[Verification]]]


@dataclass(frozen=True)
class Exported:
    """The results of an export, and their sources.

    Attributes:
        base: The model that the bundles were made from.
        source: The folder or `.gguf` file of the base.
        tokenizer: The folder of `--tokenizer`; None if not given.
        bundles: Folder and sites of each bundle.
        experts: Folder and package of each expert.
        unmerged: The model before the expert was merged; verification changes it. None if nothing was merged.
        thin: Whether the packages have no bundle.
    """

    base: BaseModel
    source: Path
    tokenizer: Path | None
    bundles: Sequence[tuple[Path, Sequence[Site]]]
    experts: Sequence[tuple[Path, Path]]
    unmerged: nn.Module | None
    thin: bool


def verify(exported: Exported) -> Results:
    """Verify an export. Its files are read and not changed.

    Tokenizers, rotary embeddings and weights are compared with the files of the source. Effects of adapters on
    modules, logits, and keys and values of each layer are compared with transformers and PEFT.

    Returns:
        A verification of each bundle, and for each expert one on each bundle. For a merged expert both are the same.

    Raises:
        ExportError: A difference is above the bound of the precision. The message names what differs.
    """
    count = sum(parameter.numel() for parameter in exported.base.model.parameters())
    steps = len(exported.bundles) * (
        2 + len(exported.experts)
    )  # reading all weights counts as much as the prompts
    with (
        only_errors("hivellm_ort"),  # warnings about unsigned packages and the CPU as fallback
        tempfile.TemporaryDirectory() as cache,
        progress_bar("verifying", steps * count, unit="w") as progress,
    ):
        verifier = _Verifier(exported, Path(cache), progress, count)
        return verifier.swapped() if exported.unmerged is None else verifier.merged(exported.unmerged)


@dataclass(frozen=True)
class _Bundle:
    folder: Path
    config: DecoderConfig
    sites: Sequence[Site]

    @property
    def where(self) -> str:
        return f"base bundle {self.config.name} {self.config.precision} for {self.config.target}"

    @property
    def bound(self) -> Bound:
        return bound_of(self.config.precision, self.config.graph.cache_dtype)

    @functools.cached_property
    def weights(self) -> BundleWeights:
        return BundleWeights(self.folder, self.config, self.sites, where=self.where)

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        return TextTokenizer.from_folder(self.folder)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return prompts(self.tokenizer.encode, self.config, texts)

    def verification(
        self, answers: Answers | None, worst: float | None, omitted: list[str], begin: float
    ) -> Verification:
        return Verification(
            target=self.config.target,
            precision=self.config.precision,
            kl=None if answers is None else answers.kl,
            bound=self.bound.kl,
            agreement=None if answers is None else answers.agreement,
            tokens=0 if answers is None else answers.tokens,
            weights=worst,
            seconds=time.perf_counter() - begin,
            omitted=omitted,
        )


class _Verifier:
    """Verifies one export.

    Args:
        exported: The export.
        cache: An empty folder to unpack packages to.
        progress: Called with the progress, in numbers of weights.
        count: Number of weights of the model.
    """

    def __init__(self, exported: Exported, cache: Path, progress: Callable[[int], object], count: int):
        self._exported, self._cache = exported, cache
        self._progress, self._count = progress, count
        self._source = open_source(exported.source)
        self._bundles = [
            _Bundle(folder, DecoderConfig.from_file(folder / DECODER_JSON), sites)
            for folder, sites in exported.bundles
        ]

    def swapped(self) -> Results:
        """Verify bundles that take adapters, and the experts on them."""
        exported = self._exported
        names = self._source.names() - ({_HEAD} if self._source.tied else set())
        bundles, reference = [], _Reference(exported.base.model)
        for bundle in self._bundles:
            begin = time.perf_counter()
            omitted = self._tables(bundle)
            worst = self._weights(bundle, names, self._source.tensor, exported.source.name)
            answers = self._answers(bundle, reference, PROMPTS, omitted)
            bundles.append(bundle.verification(answers, worst, omitted, begin))
        return bundles, [self._expert(folder, package) for folder, package in exported.experts]

    def merged(self, unmerged: nn.Module) -> Results:
        """Verify bundles with the one expert merged in."""
        exported, source = self._exported, self._source
        folder, package = exported.experts[0]
        for name, parameter in unmerged.named_parameters():
            if name in source.names() and not (name == _HEAD and source.tied):
                values, file = parameter.detach().numpy(), exported.source.name
                compare(
                    source.tensor(name), values, _EXACT, name=name, where="the base in memory", source=file
                )
        if (
            unmerged.lm_head.weight is unmerged.model.embed_tokens.weight
        ):  # an adapter may change only one of the two
            unmerged.lm_head.weight = nn.Parameter(unmerged.lm_head.weight.detach().clone())
        adapted, told = self._peft(unmerged, folder)
        model = exported.base.model if adapted is None else merged_by_peft(adapted)
        tensors = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
        where = "the merged model in memory" if adapted is None else f"PEFT's merge of {folder.name}"
        own = [folder] if (folder / "tokenizer.json").is_file() else []
        reference, texts = _Reference(model), [*PROMPTS, *_examples(folder)]
        results = []
        for bundle in self._bundles:
            begin = time.perf_counter()
            omitted = [*told, *self._tables(bundle, *own)]
            worst = self._weights(bundle, set(tensors), tensors.__getitem__, where)
            answers = self._answers(bundle, reference, texts, omitted, package=package)
            results.append(bundle.verification(answers, worst, omitted, begin))
        return results, [results]

    def _expert(self, folder: Path, package: Path) -> list[Verification]:
        """Verify an expert on each bundle."""
        begin, results = time.perf_counter(), []
        adapted, told = self._peft(self._exported.base.model, folder)
        try:
            reference = None if adapted is None else _Reference(adapted)
            for bundle in self._bundles:
                omitted: list[str] = list(told)
                worst: float | None = None
                answers: Answers | None = None
                if reference is not None:
                    check = functools.partial(_adapter_and_answers, bundle, reference, folder)
                    worst, answers = self._run(bundle, check, omitted, package) or (None, None)
                self._progress(self._count)
                results.append(bundle.verification(answers, worst, omitted, begin))
                begin = time.perf_counter()
        finally:
            if adapted is not None:
                adapted.unload()
        return results

    def _tables(self, bundle: _Bundle, *tokenizers: Path) -> list[str]:
        """Compare rotary embedding and tokenizer; returns what could not be compared."""
        dtype, weights = bundle.config.graph.activation_dtype, bundle.weights
        folders = [
            self._exported.tokenizer,
            None if isinstance(self._source, GgufSource) else self._exported.source,
        ]
        tokenizers += tuple(folder for folder in folders if folder is not None)
        told = (
            check_tokenizer(bundle.tokenizer, self._source, tokenizers, where=bundle.where),
            check_rotary(self._source.rotary(), *weights.rotary(), dtype=dtype, where=bundle.where),
        )
        return [one for one in told if one is not None]

    def _weights(
        self, bundle: _Bundle, names: set[str], tensor: Callable[[str], Array], source: str
    ) -> float:
        if _HEAD not in bundle.weights.names and _HEAD in names:
            # Tied only in the bundle: then the two must be equal.
            compare(
                tensor(_HEAD),
                bundle.weights.tensor(_EMBEDDING),
                bundle.bound,
                name=_HEAD,
                where=bundle.where,
                source=source,
            )
        return check_weights(
            bundle.weights,
            names - ({_HEAD} - bundle.weights.names),
            tensor,
            bound=bundle.bound,
            where=bundle.where,
            source=source,
            progress=self._progress,
        )

    def _answers(
        self,
        bundle: _Bundle,
        reference: _Reference,
        texts: Sequence[str],
        omitted: list[str],
        package: Path | None = None,
    ) -> Answers | None:
        """Compare answers without an adapter; None if the bundle does not run here."""

        def compare_answers(engine: Engine, _: BoundAdapter | None) -> Answers:
            return _compared(bundle, engine, None, reference, texts, bundle.where)

        answers = self._run(bundle, compare_answers, omitted, package)
        self._progress(self._count)
        return answers

    def _peft(self, model: nn.Module, folder: Path) -> tuple[Any, list[str]]:
        """Load an adapter with PEFT; or None, and the reason."""
        merged = self._exported.unmerged is not None
        if merged and model.lm_head.out_features != self._exported.base.model.lm_head.out_features:
            return None, [f"adapter: not compared; {folder.name} has its own vocabulary"]
        try:
            return load_peft(model, folder, tables=merged), []
        except Exception as error:  # PEFT raises errors of many types
            text = str(error).strip().splitlines()
            return None, [f"adapter: not compared; PEFT cannot load {folder.name}: {text[0] if text else ''}"]

    def _run(
        self,
        bundle: _Bundle,
        use: Callable[[Engine, BoundAdapter | None], _T],
        omitted: list[str],
        package: Path | None,
    ) -> _T | None:
        """Run a bundle on the CPU provider, with the adapter of a package.

        A failure is an error for targets that must run there. For other targets it is added to `omitted`.

        Returns:
            The result of `use`; None if the bundle does not run.
        """
        config = bundle.config
        device = Device(
            "cpu", fallback=True
        )  # for graphs of other targets, and for types that are slow on a CPU
        alone = len(self._bundles) == 1 and not self._exported.thin
        try:
            if config.target not in _OWN and bundle.weights.normed_attention:
                raise InferenceError("attention of the CPU provider has no norms of query and key")
            if package is not None and (alone or config.merged is None):
                options: Any = {"base": None if alone else bundle.folder, "cache_dir": self._cache}
                with Expert.load(package, device="cpu", fallback=True, trust="off", **options) as expert:
                    return use(expert.shared_base.engine, expert.adapter)
            engine = Engine(bundle.folder, config, placement=choose_placement(device, config))
            try:
                return use(engine, None)
            finally:
                engine.close()
        except ExportError:
            raise
        except ExpertError as error:
            if config.target in _OWN:
                raise ExportError(f"{bundle.where} does not run: {error}") from error
            omitted.append(
                f"answers: not compared; the CPU provider cannot run the {config.precision} graphs for "
                f"{config.target} of this model"
            )
            return None


class _Reference:
    """Answers of a model of transformers or PEFT, computed once for each prompt."""

    def __init__(self, model: Any):
        self.model = model
        self._passes: dict[tuple[int, ...], Pass] = {}

    def __call__(self, token_ids: Sequence[int]) -> Pass:
        key = tuple(token_ids)
        if key not in self._passes:
            self._passes[key] = reference_pass(self.model, token_ids)
        return self._passes[key]


def _adapter_and_answers(
    bundle: _Bundle, reference: _Reference, folder: Path, engine: Engine, adapter: BoundAdapter | None
) -> tuple[float | None, Answers]:
    """Compare the effect of an expert on each module, and its answers."""
    where, worst = f"{folder.name} on {bundle.where}", None
    if adapter is not None:
        worst = check_adapter(reference.model, adapter, bundle.sites, where=where)
    return worst, _compared(bundle, engine, adapter, reference, [*PROMPTS, *_examples(folder)], where)


def _compared(
    bundle: _Bundle,
    engine: Engine,
    adapter: BoundAdapter | None,
    reference: _Reference,
    texts: Sequence[str],
    where: str,
) -> Answers:
    """Compare answers to some texts; raises ExportError if they differ by more than the bound."""
    answers, bound = Answers(), bundle.bound
    for token_ids in bundle.token_ids(texts):
        answers.add(
            reference(token_ids), bundle_pass(engine, adapter, token_ids, bundle.weights.cache_scales)
        )
    layer = answers.first_layer(bound.layer)
    if layer is not None:
        cut = bundle.config.graph.cache_dtype == "int8"
        hint = "; --cache int8 clips values beyond its scales: leave it out" if cut else ""
        raise ExportError(f"{where}: answers differ from transformers': {layer}{hint}")
    if not answers.kl <= bound.kl:
        raise ExportError(
            f"{where}: answers differ from transformers' by {answers.kl:.3g} nats a token, the bound of "
            f"{bundle.config.precision} is {bound.kl:g}: {answers.largest(bound.layer)}"
        )
    return answers


def _examples(folder: Path) -> list[str]:
    """A few prompts with their system messages, which the author has recorded beside the expert."""
    try:
        lines = decode_text((folder / _REFERENCES).read_bytes()).splitlines()[:_EXAMPLES]
        found = [json.loads(line) for line in lines]
        return ["\n".join(str(one[key]) for key in ("system", "user") if one.get(key)) for one in found]
    except (OSError, ValueError, TypeError, AttributeError):
        return []
