"""Checks the `constraints` of manifests: required experts, incompatible experts, load order and chain length."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hivellm_ort.errors import LoadError
from hivellm_ort.package.manifest import ExpertManifest

__all__ = ["check_constraints", "check_removal", "check_replacement", "sort_experts"]


def check_constraints(manifest: ExpertManifest, loaded: Collection[ExpertManifest]) -> None:
    """Refuse an expert that cannot be loaded together with the loaded experts.

    An entry of `requires` is a package name such as `expert-sql`, or a name and an exact version such as
    `expert-sql@0.3.0`. `max_chain` limits the length of a chain of experts that require each other, with this one.

    Raises:
        LoadError: A required expert is not loaded, two experts are incompatible, or the chain is too long.
    """
    for wanted in manifest.constraints.requires:
        if not any(_is(wanted, other) for other in loaded):
            raise LoadError(
                f"{manifest.name!r} requires {wanted!r} (/constraints/requires), which is not loaded: load it first"
            )
    for one, others in [(manifest, loaded), *((other, [manifest]) for other in loaded)]:
        for excluded in one.constraints.incompatible_with:
            if any(_is(excluded, other) for other in others):
                raise LoadError(
                    f"{one.name!r} is incompatible with {excluded!r} (/constraints/incompatible_with): "
                    f"{manifest.name!r} cannot be loaded beside it; unload the other first"
                )
    present = {one.name: one for one in [*loaded, manifest]}
    for top in present.values():
        chain = _chain(top, present, frozenset())
        for one in chain:
            most = one.constraints.max_chain
            if most is not None and len(chain) > most:
                raise LoadError(
                    f"{' requires '.join(repr(link.name) for link in chain)}: a chain of {len(chain)}, and "
                    f"{one.name!r} allows {most} (/constraints/max_chain)"
                )


def check_removal(name: str, manifest: ExpertManifest, others: Collection[ExpertManifest]) -> None:
    """Refuse to unload an expert that others require.

    Args:
        name: The name under which the expert is loaded, for the message.
        manifest: Its manifest.
        others: The manifests of the other loaded experts.

    Raises:
        LoadError: Another loaded expert requires it.
    """
    needing = _find_dependents(manifest, others)
    if needing:
        raise LoadError(f"{name!r} is required by {', '.join(map(repr, needing))}: unload that first")


def check_replacement(old: ExpertManifest, new: ExpertManifest, loaded: Collection[ExpertManifest]) -> None:
    """Refuse to replace an expert that others require, if the new one does not meet their requirement.

    Raises:
        LoadError: Another loaded expert requires the old one.
    """
    needing = [name for name in _find_dependents(old, [*loaded, new]) if name != new.name]
    if needing:
        raise LoadError(
            f"{old.name!r} {old.version} is required by {', '.join(map(repr, needing))} (/constraints/requires), and "
            f"{new.name!r} {new.version} is not what they require: unload those first"
        )


def _find_dependents(manifest: ExpertManifest, others: Collection[ExpertManifest]) -> list[str]:
    """Return the names of the packages that require this one, if no other package meets their requirement."""
    return [
        other.name
        for other in others
        if any(
            _is(wanted, manifest) and not any(_is(wanted, third) for third in others)
            for wanted in other.constraints.requires
        )
    ]


def sort_experts(manifests: Mapping[str, ExpertManifest]) -> list[str]:
    """Return the names in the order in which to load them.

    Each expert comes after the experts that it requires. Otherwise `load_order` decides; those without it come last.

    Raises:
        LoadError: Experts require each other in a circle.
    """
    left = sorted(manifests, key=lambda name: _rank(manifests[name]))
    ordered: list[str] = []
    while left:
        ready = [name for name in left if not _waits(manifests[name], [manifests[other] for other in left])]
        if not ready:
            circle = ", ".join(repr(manifests[name].name) for name in left)
            raise LoadError(f"{circle} require each other in a circle (/constraints/requires): leave one out")
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered


def _rank(manifest: ExpertManifest) -> float:
    order = manifest.constraints.load_order
    return float("inf") if order is None else order


def _waits(manifest: ExpertManifest, left: Collection[ExpertManifest]) -> bool:
    wanted = manifest.constraints.requires
    return any(_is(name, other) for name in wanted for other in left if other is not manifest)


def _is(wanted: str, manifest: ExpertManifest) -> bool:
    name, _, version = wanted.partition("@")
    return name == manifest.name and version in ("", manifest.version)


def _chain(
    manifest: ExpertManifest, loaded: Mapping[str, ExpertManifest], above: frozenset[str]
) -> list[ExpertManifest]:
    """Return the longest chain of experts that require each other, beginning with this one."""
    below: list[ExpertManifest] = []
    for wanted in manifest.constraints.requires:
        other = loaded.get(wanted.partition("@")[0])
        if other is not None and other.name not in above | {manifest.name}:
            below = max(below, _chain(other, loaded, above | {manifest.name}), key=len)
    return [manifest, *below]
