"""What manifests demand of each other: requires, incompatible_with, load_order, max_chain."""

from __future__ import annotations

from pathlib import Path

import pytest
from managing import Variants, adapters_alive, managed
from support.running import PROMPT, Packages

from hivellm_ort import ExpertManager, LoadError


@pytest.fixture
def manager(packages: Packages) -> ExpertManager:
    """An empty manager."""
    return managed(packages)


def _loaded(manager: ExpertManager) -> list[str]:
    return [info.name for info in manager.list_loaded_experts()]


def test_requires(manager: ExpertManager, variants: Variants) -> None:
    """One that is required must be there first, by package and version, and cannot go before the other."""
    needed = variants.make("expert-needed")
    needy = variants.make("expert-needy", constraints={"requires": ["expert-needed@1.0.0"]})
    older = variants.make("expert-older", constraints={"requires": ["expert-needed@0.9.0"]})
    with manager:
        with pytest.raises(LoadError, match=r"requires 'expert-needed@1\.0\.0'.*not loaded"):
            manager.load_expert("b", needy)
        manager.load_expert("a", needed)
        with pytest.raises(LoadError, match=r"requires 'expert-needed@0\.9\.0'"):
            manager.load_expert("c", older)
        manager.load_expert("b", needy)
        with pytest.raises(LoadError, match="'a' is required by 'expert-needy'"):
            manager.unload_expert("a")
        manager.load_expert("again", needed)
        manager.unload_expert("a")  # the same package under another name serves
        with pytest.raises(LoadError, match="is required by"):
            manager.unload_expert("again")
        manager.unload_expert("b")
        manager.unload_expert("again")
        assert [] == _loaded(manager)


def test_replacing_a_required_one(manager: ExpertManager, variants: Variants) -> None:
    """Only a package that the others can do with takes the place of one that they require."""
    needed, newer = variants.make("expert-needed"), variants.make("expert-needed", version="2.0.0")
    needy = variants.make("expert-needy", constraints={"requires": ["expert-needed@1.0.0"]})
    with manager:
        manager.load_expert("a", needed)
        manager.load_expert("b", needy)
        for path in (newer, variants.make("expert-else")):
            with pytest.raises(LoadError, match=r"'expert-needed' 1\.0\.0 is required by 'expert-needy'"):
                manager.load_expert("a", path, replace=True)
        manager.load_expert("a", needed, replace=True)
        assert ["1.0.0", "1.0.0"] == [info.version for info in manager.list_loaded_experts()]
        manager.generate("a", PROMPT, max_tokens=1)


@pytest.mark.parametrize("order", [("friend", "foe"), ("foe", "friend")])
def test_incompatible(manager: ExpertManager, variants: Variants, order: tuple[str, str]) -> None:
    """Whichever of the two says so and whichever comes first, they are not loaded together."""
    paths = {
        "friend": variants.make("expert-friend"),
        "foe": variants.make("expert-foe", constraints={"incompatible_with": ["expert-friend"]}),
    }
    first, second = order
    with manager:
        manager.load_expert("a", paths[first])
        with pytest.raises(LoadError, match="'expert-foe' is incompatible with 'expert-friend'"):
            manager.load_expert("b", paths[second])
        manager.load_expert("a", paths[second], replace=True)  # in its place it may
        assert ["a"] == _loaded(manager)


def _chain(variants: Variants, length: int, **limits: int) -> list[Path]:
    names = [f"expert-{number}" for number in range(length)]
    paths = []
    for number, name in enumerate(names):
        constraints: dict[str, object] = {"requires": names[number - 1 : number] if number else []}
        if name.replace("-", "_") in limits:
            constraints["max_chain"] = limits[name.replace("-", "_")]
        paths.append(variants.make(name, constraints=constraints))
    return paths


@pytest.mark.parametrize("strict", ["expert_0", "expert_1", "expert_2"])
def test_max_chain(manager: ExpertManager, variants: Variants, strict: str) -> None:
    """No chain is longer than any of its members allows."""
    paths = _chain(variants, 3, **{strict: 2})
    with manager:
        for name, path in zip("ab", paths, strict=False):
            manager.load_expert(name, path)
        with pytest.raises(LoadError, match=r"a chain of 3, and .* allows 2"):
            manager.load_expert("c", paths[2])
        assert ["a", "b"] == _loaded(manager)


def test_max_chain_grows_below(manager: ExpertManager, variants: Variants) -> None:
    """A replacement that lengthens another one's chain is refused too."""
    below, middle = variants.make("expert-below"), variants.make("expert-middle")
    longer = variants.make("expert-middle", constraints={"requires": ["expert-below"]})
    top = variants.make("expert-top", constraints={"requires": ["expert-middle"], "max_chain": 2})
    with manager:
        for name, path in zip("abc", (below, middle, top), strict=True):
            manager.load_expert(name, path)
        with pytest.raises(LoadError, match=r"a chain of 3, and 'expert-top' allows 2"):
            manager.load_expert("b", longer, replace=True)


def test_load_experts_order(manager: ExpertManager, variants: Variants) -> None:
    """The order is that of `load_order`, but each expert comes after those that it requires."""
    paths = {
        "last": variants.make("expert-last"),
        "second": variants.make("expert-second", constraints={"load_order": 2}),
        "first": variants.make("expert-first", constraints={"load_order": 1, "requires": ["expert-zeroth"]}),
        "zeroth": variants.make("expert-zeroth", constraints={"load_order": 5}),
    }
    with manager:
        infos = manager.load_experts(paths)
        assert ["second", "zeroth", "first", "last"] == [info.name for info in infos]
        assert ["second", "zeroth", "first", "last"] == _loaded(manager)


def test_load_experts_in_a_circle(manager: ExpertManager, variants: Variants) -> None:
    """Nobody could be first: that is said, and nothing is loaded."""
    paths = {
        "a": variants.make("expert-a", constraints={"requires": ["expert-b"]}),
        "b": variants.make("expert-b", constraints={"requires": ["expert-a"]}),
    }
    with manager:
        with pytest.raises(LoadError, match="require each other in a circle"):
            manager.load_experts(paths)
        assert [] == _loaded(manager)


def test_load_experts_takes_back(manager: ExpertManager, packages: Packages, variants: Variants) -> None:
    """If one load fails, all new experts are removed, also those that others require. Earlier experts stay."""
    alive = adapters_alive()
    paths = {
        "a": variants.make("expert-a"),
        "b": variants.make("expert-b", constraints={"requires": ["expert-a"]}),
        "taken": variants.make("expert-c"),
    }
    with manager:
        manager.load_expert("taken", packages.dora)
        with pytest.raises(LoadError, match="'taken' already"):
            manager.load_experts(paths)
        assert ["expert-dora"] == [info.package for info in manager.list_loaded_experts()]
        assert alive + 1 == adapters_alive()
        manager.load_experts({"a": paths["a"], "b": paths["b"]})
        assert ["taken", "a", "b"] == _loaded(manager)
