"""What one export makes: a bundle for each target, each with its precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hivellm_export.targets import TARGETS, Precision, Target, choose_target, graph_form
from hivellm_ort.contract import Architecture, GraphForm
from hivellm_ort.errors import ExportError

__all__ = ["Plan", "plan_bundles"]


@dataclass(frozen=True)
class Plan:
    """One bundle that is to be made; `context` is for targets of fixed shapes."""

    target: Target
    precision: Precision
    context: int | None

    def form(self, architecture: Architecture) -> GraphForm:
        """The form of its graphs.

        Raises:
            ExportError: the context does not fit the model.
        """
        return graph_form(self.target, self.precision, architecture, self.context)


def plan_bundles(
    targets: Sequence[str], precisions: Sequence[str] = (), context: int | None = None
) -> tuple[Plan, ...]:
    """The bundles of an export, in the order of `TARGETS` however they were asked for.

    Args:
        targets: names of targets, each once.
        precisions: `TARGET=PRECISION`, or `PRECISION` alone where there is one target. A target that has none gets
            its default.
        context: tokens of the cache, for the targets of fixed shapes among them.

    Raises:
        ExportError: a target is not known or doubled, a precision is doubled or not one of its target, or none of
            the targets has a cache of fixed length.
    """
    for name in targets:
        if targets.count(name) > 1:
            raise ExportError(f"--target {name} is there twice: a package has one bundle for a target")
    chosen = _by_target(targets, precisions)
    fixed = [name for name in targets if name in TARGETS and TARGETS[name].buckets]
    plans = []
    for name in sorted(targets, key=[*TARGETS, *targets].index):
        # Where no target has fixed shapes, the first one says so.
        own = context if name in fixed or not fixed else None
        plans.append(Plan(*choose_target(name, chosen.get(name), own), own))
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
