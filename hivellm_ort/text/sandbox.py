"""The jinja2 sandbox of chat templates: the environment of transformers, within a budget.

Imported only when a template is compiled, so that importing the package stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache, wraps
from types import BuiltinMethodType, MethodType
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, _PassArg, generate_lorem_ipsum, pass_context

from hivellm_ort.text.budget import BUDGET, Budget, TemplateLimitError
from hivellm_ort.text.template_rules import FILTERS, METHODS, tojson, unknown_method

if TYPE_CHECKING:
    from jinja2.parser import Parser
    from jinja2.runtime import Context

__all__ = ["MAX_NODES", "chat_environment"]

MAX_NODES = 20_000
"""Most parts that a template may have: texts, names, operators, tags. The largest published ones have some 4,000."""

_COSTS: dict[type[nodes.Node], int] = {
    **dict.fromkeys((nodes.Call, nodes.Filter, nodes.Test, nodes.Getattr, nodes.Getitem, nodes.For), 4),
    **dict.fromkeys((nodes.Macro, nodes.CallBlock), 16),
}
_REPEATED = nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block
_MAX_MESSAGE = 1000


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training. Here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # As in transformers the body has its own scope: variables set inside do not leak.
        return nodes.Scope(body).set_lineno(line)


class _CountingGenerator(CodeGenerator):
    """Compiles templates that count every loop, macro, block and operator."""

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        self._parts = 0
        self._bodies: dict[int, int] = {}
        self._tests: dict[int, int] = {}
        self._bodies[id(node.body)] = self._cost(node.body)
        if self._parts > MAX_NODES:
            raise TemplateLimitError(f"the chat template has more than {MAX_NODES} parts")
        super().visit_Template(node, frame)

    def _cost(self, parts: Iterable[nodes.Node]) -> int:
        """Return the steps to run parts once. Bodies and tests that may run again are counted separately."""
        total = 1
        for part in parts:
            self._parts += 1
            total += _COSTS.get(type(part), 1)
            again: set[int] = set()
            if isinstance(part, _REPEATED):
                again = {*map(id, part.body)}
                self._bodies[id(part.body)] = 3 + self._cost([*part.body, *getattr(part, "defaults", ())])
            if isinstance(part, nodes.For) and part.test is not None:
                again.add(id(part.test))
                self._tests[id(part.test)] = 3 + self._cost([part.test])
            total += self._cost(child for child in part.iter_child_nodes() if id(child) not in again)
        return total

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        cost = self._bodies.get(id(nodes))
        if cost is not None:
            self.writeline(f"budget.steps -= {cost}")
            self.writeline("if budget.steps < 0: budget.check()")
        super().blockvisit(nodes, frame)

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        cost = self._tests.pop(id(node), None) if isinstance(node, nodes.Expr) else None
        if cost is None:
            return super().visit(node, *args, **kwargs)
        self.write(f"(budget.step({cost}), ")
        super().visit(node, *args, **kwargs)
        self.write(")[1]")
        return None

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("budget = environment.budget()")

    def _call(self, name: str, frame: Frame, *args: nodes.Node) -> None:
        self.write(f"budget.{name}(")
        for arg in args:
            self.visit(arg, frame)
            self.write(", ")
        self.write(")")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._call("add", frame, node.left, node.right)

    def visit_Mul(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._call("multiply", frame, node.left, node.right)

    def visit_Mod(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._call("modulo", frame, node.left, node.right)

    def visit_Pow(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._call("power", frame, node.left, node.right)

    def _operator(self, node: nodes.BinExpr, frame: Frame) -> None:
        self.write(f"budget.apply(environment.binop_table[{node.operator!r}], ")
        self.visit(node.left, frame)
        self.write(", ")
        self.visit(node.right, frame)
        self.write(")")

    visit_Sub = visit_Div = visit_FloorDiv = _operator

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("budget.concat((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        if len(sides) == 2 and _is_short(sides[0], sides[1], node.ops[0].op):
            super().visit_Compare(node, frame)
            return
        if len(sides) == 2 and node.ops[0].op in ("in", "notin"):
            self.write("(" if node.ops[0].op == "in" else "(not ")
            self._call("contains", frame, *sides)
            self.write(")")
            return
        self.write("(")
        self._side(sides[0], "read", frame)
        for operand in node.ops:
            self.write(f" {_COMPARISONS[operand.op]} ")
            self._side(operand.expr, "within" if operand.op in ("in", "notin") else "read", frame)
        self.write(")")

    def _side(self, node: nodes.Expr, name: str, frame: Frame) -> None:
        if isinstance(node, nodes.Const):
            self.visit(node, frame)
        else:
            self._call(name, frame, node)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self.write("budget.made(")
            super().visit_Getitem(node, frame)
            self.write(")")
        else:
            super().visit_Getitem(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("{")
        for item in node.items:
            self._side(item.key, "read", frame)
            self.write(": ")
            self.visit(item.value, frame)
            self.write(", ")
        self.write("}")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("budget.text(")

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier, frame: Frame) -> None:
        raise TemplateLimitError("the chat template has {% autoescape %}, which is for web pages: remove it")


_COMPARISONS = {
    "eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in",
}  # fmt: skip


def _is_short(left: nodes.Expr, right: nodes.Expr, comparison: str) -> bool:
    """Return whether a comparison is cheap: with one or a few texts in the template's source."""
    if comparison in ("in", "notin"):
        return isinstance(right, nodes.List | nodes.Tuple) and all(
            isinstance(i, nodes.Const) for i in right.items
        )
    return isinstance(left, nodes.Const) or isinstance(right, nodes.Const)


class _Formatter(SandboxedFormatter):
    """Formats the fields of `str.format` within the budget."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        budget = BUDGET.get()
        if not isinstance(value, str):
            budget.require(budget.measure(value)[0])
        budget.require(4 * budget.widths(format_spec))
        return budget.made(super().format_field(value, format_spec))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        budget = BUDGET.get()
        if conversion is not None:
            budget.require(budget.measure(value)[0])
        return budget.made(super().convert_field(value, conversion)) if conversion is not None else value


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox. Its templates count their work in the `Budget` of the rendering."""

    code_generator_class = _CountingGenerator
    # Intercepted operators are not evaluated at compile time.
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    @staticmethod
    def budget() -> Budget:
        return BUDGET.get()

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        return BUDGET.get().concat(pieces)

    def getattr(self, obj: Any, attribute: str) -> Any:
        # A fast path for the most frequent lookups.
        kind = type(obj)
        if kind is dict:
            if attribute not in _OF_MAPPINGS and attribute in obj:
                return obj[attribute]
        elif kind is str:
            if attribute in _OF_TEXTS:
                return getattr(obj, attribute)
        elif (kind is LoopContext or kind is Namespace) and attribute[0] != "_":
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        kind = type(argument)
        if kind is str and type(obj) is dict and argument in obj:
            return obj[argument]
        if kind is not str and kind is not int:
            BUDGET.get().read(argument)  # hashing takes time
        return super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.steps -= len(args) + len(kwargs)
        own = obj.__self__ if isinstance(obj, _METHODS) else None
        if own is None and isinstance(obj, BuiltinMethodType):
            own = type(own)  # a static method, such as `maketrans` of texts
        if isinstance(own, _COUNTED):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            rule: Callable[..., Any] = METHODS.get(obj.__name__, unknown_method)
            args = rule(budget, own, *args, **kwargs) or args
            if type(own) is str:
                return budget.made(obj(*args, **kwargs))
        elif type(obj) is not Macro:
            if own is not None:  # such as a range, which searches item by item
                budget.read(own)
            for value in args:
                if isinstance(value, list | tuple | dict):
                    budget.step(len(value))
                if own is not None:  # such as `loop.changed`, which compares
                    budget.read(value)
        return budget.made(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, _METHODS) or super().wrap_str_format(value) is None:
            return None
        own, whole = str(value.__self__), value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            budget = BUDGET.get()
            budget.step(len(own))
            if whole:
                (kwargs,), args = args, ()
            text = _Formatter(self).vformat(own, args, kwargs)
            return str(budget.made(text))

        return formatted


_OF_MAPPINGS = frozenset(dir(dict))
_OF_TEXTS = frozenset(name for name in dir(str) if name[0] != "_") - {"format", "format_map"}
_METHODS = BuiltinMethodType, MethodType
_COUNTED = str, bytes, bytearray, int, float, list, tuple, Mapping, type


def _counted(function: Callable[..., Any], rule: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that runs its rule first."""
    passed = _PassArg.from_obj(function)

    # Filters with the context are not evaluated at compile time.
    @pass_context
    @wraps(function)
    def counted(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        if args:
            budget.step(len(args))
        source = value
        value = rule(budget, value, *args, **kwargs)
        if passed is None:
            return budget.made(function(value, *args, **kwargs), source)
        heads = {_PassArg.context: context, _PassArg.eval_context: context.eval_ctx}
        return budget.made(function(heads.get(passed, context.environment), value, *args, **kwargs), source)

    counted.jinja_pass_arg = _PassArg.context  # type: ignore[attr-defined]  # `wraps` copies the filter's own
    return counted


def _reading(function: Any) -> Callable[..., Any]:
    """Return a test that counts its values as read."""

    @wraps(function)
    def reading(*args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get(None) or Budget()
        for value in args:
            budget.read(value)
        if len(args) == 2:  # the test `in`
            budget.search(args[1], args[0])
        return function(*args, **kwargs)

    return reading


_READING_TESTS = (
    "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan", "<=", "le",
    "in", "lower", "upper", "divisibleby", "odd", "even",
)  # fmt: skip


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(BUDGET.get().text(message)[:_MAX_MESSAGE])


def _strftime_now(format: str) -> str:  # noqa: A002 - templates may name the argument
    if len(format) > _MAX_MESSAGE or BUDGET.get().widths(format) > _MAX_MESSAGE:
        raise TemplateLimitError(
            f"the chat template writes the date with more than {_MAX_MESSAGE} characters"
        )
    return datetime.now().strftime(format)


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:  # noqa: A002 - as jinja2 names them
    budget = BUDGET.get()
    budget.step(20 * abs(n) * (abs(max) + 1))
    return generate_lorem_ipsum(n, html, min, max)


@cache
def chat_environment() -> ImmutableSandboxedEnvironment:
    """Return the shared sandboxed environment that compiles all chat templates.

    Source: `_compile_jinja_template` of transformers 4.57, `transformers/utils/chat_template_utils.py`.
    """
    # The text is for a model, not for a browser: HTML escaping would change the prompt.
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        optimized=False,  # constant folding would run without a budget
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = tojson
    environment.filters = {name: _counted(f, FILTERS[name]) for name, f in environment.filters.items()}
    tests: dict[str, Any] = environment.tests
    tests.update({name: _reading(tests[name]) for name in _READING_TESTS})
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["lipsum"] = _lipsum
    return environment
