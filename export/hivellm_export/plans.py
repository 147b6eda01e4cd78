"""What one export makes: a bundle for each target, each with its precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hivellm_export.target_support import TARGETS, Precision, Target, choose_target, graph_form
from hivellm_ort.contract import Architecture, GraphConfig
from hivellm_ort.errors import ExportError

__all__ = ["AUTO", "Plan", "plan_bundles"]

AUTO = "auto"
"""The precision that goes by the model's size and this machine's CPU."""

_LARGE = 2_000_000_000  # parameters; SmolLM2-135M loses 0.28 nats a token in int4
_EIGHT_BIT_PRODUCTS = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")


@dataclass(frozen=True)
class Plan:
    """One bundle that is to be made.

    Attributes:
        target: what its graphs are for.
        precision: of its weights; the target's default as long as `automatic` is not settled.
        context: tokens of the cache, for targets of fixed shapes.
        cache: type of keys and values, `int8` or None for that of the precision.
        automatic: whether the precision is to be chosen.
        reason: why this one, where it was chosen.
    """

    target: Target
    precision: Precision
    context: int | None
    cache: str | None = None
    automatic: bool = False
    reason: str = ""

    def settled(self, parameters: int, flags: Mapping[str, bool]) -> Plan:
        """With a precision for a model of so many parameters, on a CPU with these instructions."""
        if not self.automatic:
            return self
        name, reason = self.precision.name, f"the default of target {self.target.name}"
        if self.target.name == "cpu":
            size = f"{parameters / 1e6:.0f} M parameters"
            found = next((flag for flag in _EIGHT_BIT_PRODUCTS if flags.get(flag)), None)
            if parameters >= _LARGE:
                name, reason = (
                    "int4",
                    f"{size}: large models lose little with 4 bits, and memory is their limit",
                )
            elif found is not None:
                name = "w8a8"
                reason = (
                    f"{size}: 4 bits lose too much; this CPU multiplies 8 bits ({found}), which halves the time "
                    "for prompts"
                )
            else:
                name = "int8"
                reason = f"{size}: 4 bits lose too much; this CPU is not known to multiply 8 bits fast"
        return replace(self, precision=self.target.precisions[name], automatic=False, reason=reason)

    def form(self, architecture: Architecture) -> GraphConfig:
        """The form of its graphs.

        Raises:
            ExportError: the context does not fit the model.
        """
        return graph_form(self.target, self.precision, architecture, self.context, self.cache)


def plan_bundles(
    targets: Sequence[str],
    precisions: Sequence[str] = (),
    context: int | None = None,
    cache: str | None = None,
) -> tuple[Plan, ...]:
    """The bundles of an export, in the order of `TARGETS` however they were asked for.

    Args:
        targets: names of targets, each once.
        precisions: `TARGET=PRECISION`, or `PRECISION` alone where there is one target; `auto` goes by model and
            CPU. A target that has none gets its default.
        context: tokens of the cache, for the targets of fixed shapes among them.
        cache: type of keys and values, `int8` or None for that of the precision; for target `cpu` alone.

    Raises:
        ExportError: a target is not known or doubled, a precision is doubled or not one of its target, none of
            the targets has a cache of fixed length, or one that `cache` is for is not among them.
    """
    for name in targets:
        if targets.count(name) > 1:
            raise ExportError(f"--target {name} is there twice: a package has one bundle for a target")
    if cache is not None and "cpu" not in targets:
        raise ExportError(
            f"--cache {cache} is for target cpu, and this export is for {', '.join(targets)}: leave it out, or add "
            "--target cpu"
        )
    chosen = _by_target(targets, precisions)
    fixed = [name for name in targets if name in TARGETS and TARGETS[name].buckets]
    plans = []
    for name in sorted(targets, key=[*TARGETS, *targets].index):
        # Where no target has fixed shapes, the first one says so.
        own = context if name in fixed or not fixed else None
        automatic = chosen.get(name) == AUTO
        target, precision = choose_target(name, None if automatic else chosen.get(name), own)
        plans.append(Plan(target, precision, own, cache if name == "cpu" else None, automatic))
    return tuple(plans)


def _by_target(targets: Sequence[str], precisions: Sequence[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for text in precisions:
        name, equals, precision = text.rpartition("=")
        if not equals:
            if len(targets) != 1:
                raise ExportError(
                    f"--precision {text}: there are several targets, {', '.join(targets)}: say for which, as in "
                    f"--precision {targets[0]}={text}"
                )
            name = targets[0]
        if name not in targets:
            raise ExportError(
                f"--precision {text}: {name} is none of the targets of this export, {', '.join(targets)}: add "
                f"--target {name}, or leave it out"
            )
        if name in chosen:
            raise ExportError(
                f"--precision: {chosen[name]} and {precision} are both for target {name}, which has one bundle: "
                "leave one out"
            )
        chosen[name] = precision
    return chosen
