"""The third stage of a load: find the adapter, the base and the other parts of an expert."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

from hivellm_ort.adapters.base_weights import BaseWeights
from hivellm_ort.adapters.prepare import Embeddings, prepare
from hivellm_ort.adapters.prepared_adapter import PreparedAdapter
from hivellm_ort.adapters.tensors import table_digest
from hivellm_ort.contract import CONTRACT_VERSION
from hivellm_ort.errors import AdapterError, LoadError
from hivellm_ort.grammar.grammar import Grammar
from hivellm_ort.loading.adapter_files import AdapterFiles, find_adapter_files
from hivellm_ort.loading.adapter_tokenizer import TOKENIZER, check_tokenizer
from hivellm_ort.loading.bases import choose_base, find_adjacent_bundles, find_base_model, find_thin_base
from hivellm_ort.loading.bundles import Bundle, rank_bundles
from hivellm_ort.loading.grammars import find_grammar
from hivellm_ort.loading.graph_check import check_graphs
from hivellm_ort.loading.opening import VerifiedPackage
from hivellm_ort.loading.options import LoadSettings
from hivellm_ort.package.bundle_folders import check_folders
from hivellm_ort.package.filecheck import Check
from hivellm_ort.package.manifest import BaseModelRef
from hivellm_ort.package.store import Store, UnpackedPackage
from hivellm_ort.text.template_source import TemplateSource, read_template_source
from hivellm_ort.text.tokenizer_file import Recall

__all__ = ["ExpertParts", "find_parts"]


@dataclass(frozen=True)
class ExpertParts:
    """The parts of an expert, before a session is opened.

    Attributes:
        package: The package.
        bundle: The base bundle.
        adapter: The adapter; None if it is merged into the base.
        model: The base model of the manifest that the bundle is.
        template: The expert's own chat template; its `file` is None if the expert has none.
        grammar: The package's grammar; None if it has none.
        recall: Records the results of checks; None if records must not be used.
    """

    package: VerifiedPackage
    bundle: Bundle
    adapter: PreparedAdapter | None
    model: BaseModelRef
    template: TemplateSource
    grammar: Grammar | None
    recall: Recall | None


def find_parts(package: VerifiedPackage, store: Store, settings: LoadSettings) -> ExpertParts:
    """Find the base of a package and its adapter. An adapter in PEFT's form is prepared now.

    An adapter that is prepared here is stored. Its key is made from the digests of its files and of the bundle.

    Args:
        package: The package.
        store: The store with bundles and prepared adapters.
        settings: The settings of the load.

    Raises:
        IntegrityError: A file of the base differs from its list.
        LoadError: The adapter or the base is missing, they do not fit each other, or the base has a graph that the
            exporter never writes.
        ProviderError: The device runs none of the available targets.
    """
    files, manifest = package.files, package.manifest
    own = _own_bundle(package, store, settings)
    adjacent = [] if own is not None else find_adjacent_bundles(package.path.absolute().parent)
    device, check = settings.device, settings.check
    packaged = own is not None and settings.base is None
    recall = store.recall if check == "size" else None
    adapter, texts = None, files.root
    if files.adapter is not None:
        adapter = PreparedAdapter.from_file(files.adapter, sha256=files.digest(files.adapter))
        bundle = own or find_thin_base(adapter, store, device, adjacent, check)
        if bundle.config.merged is not None:
            raise LoadError(f"{manifest.name}: another adapter is merged into the base bundle already")
        model = find_base_model(bundle, manifest)
    elif own is not None and packaged and own.config.merged is not None:
        bundle, model = own, find_base_model(own, manifest)
    else:
        bundle, model = choose_base(manifest, store, device, own, adjacent, check)
        peft = find_adapter_files(files, manifest, model)
        adapter, texts = _prepared(files, peft, store, bundle, check), peft.own
    # A signature covers only the package's own graphs.
    if settings.trust.policy != "off" and not (packaged and package.verdict.status == "verified"):
        check_graphs(bundle, recall=recall)
    grammar = find_grammar(files, manifest)
    return ExpertParts(package, bundle, adapter, model, _template(texts), grammar, recall)


def _own_bundle(package: VerifiedPackage, store: Store, settings: LoadSettings) -> Bundle | None:
    """Return the caller's bundle, else the package's best one for the device; None if the package is thin."""
    files = package.files
    if settings.base is not None:
        bundle = Bundle.open(settings.base)  # first, because its error for other folders is clearer
        check_folders([settings.base], settings.check)
        return bundle
    if not files.bundles:
        return None
    bundles = [Bundle.open(folder) for folder in files.bundles]
    best = rank_bundles(bundles, settings.device, owner=package.manifest.name)[0]
    return dataclasses.replace(best, folder=store.gather_bundle(best.folder, files))


def _template(folder: Path) -> TemplateSource:
    """Return the chat template in the expert's folder. Its file name has the folder's name, for messages."""
    name = folder.resolve().name
    try:
        found = read_template_source(folder)
    except LoadError as error:
        raise LoadError(f"{name}/{error}") from error
    return found if found.file is None else dataclasses.replace(found, file=f"{name}/{found.file}")


def _prepared(
    package: UnpackedPackage, files: AdapterFiles, store: Store, bundle: Bundle, check: Check
) -> PreparedAdapter:
    digests = [package.digest(files.config), package.digest(files.weights), bundle.config.sha256]
    if (files.own / TOKENIZER).is_file():  # the check of the tokenizer reads all of these
        digests += [package.digest(path) for path in files.texts]
    key = hashlib.sha256("\n".join((CONTRACT_VERSION, *digests)).encode()).hexdigest()
    try:
        path = store.prepare_adapter(key, lambda: _prepare(files, bundle), check=check)
    except AdapterError as error:
        if package.sha256:
            raise
        raise type(error)(f"{files.weights.resolve().parent.name}/{error}") from error
    return PreparedAdapter.from_file(path)


def _prepare(files: AdapterFiles, bundle: Bundle) -> bytes:
    config = bundle.config
    check_tokenizer(files.own, bundle.folder / TOKENIZER)
    adapter = prepare(
        files.config,
        files.weights,
        sites=config.sites,
        tensor=BaseWeights(bundle.folder, config).tensor,
        source_sha256=config.source_sha256,
        embeddings=Embeddings(
            config.architecture.vocab_size,
            lambda name, rows: (
                None if (known := config.embeddings.get(name)) is None else table_digest(rows) == known
            ),
        ),
    )
    return dataclasses.replace(adapter, base_sha256=config.sha256).to_bytes()
