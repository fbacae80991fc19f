"""The code that Jinja generates for a bounded template: it calls the environment where the template loops, makes a value that may
be larger than those it is made of, or compares two variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

_TERMS = 4  # variables in one sum of which the result is not counted if it is only printed
_PARTS = 8  # variables in one sum or one joined text; what has more is made in steps
_LONGEST_TEXT = 64  # a longer text in the template counts as a variable


class BoundedCode(CodeGenerator):
    """Generates calls of `tick`, `made` and `join` of the environment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bodies: set[int] = set()
        self._printed: nodes.Expr | None = None

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """A step for each round."""
        self._bodies.add(id(node.body))
        super().visit_For(node, frame)

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """See `CodeGenerator`."""
        if id(nodes) in self._bodies:
            self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """Counted, if it has a variable."""
        self._counted(not _all_constant(node.items), super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """Counted, if it has a variable."""
        self._counted(not _all_constant([pair.value for pair in node.items]), super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """Counted, if it has a variable and is not the target of an assignment."""
        self._counted(node.ctx == "load" and not _all_constant(node.items), super().visit_Tuple, node, frame)

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        """A sum of several terms is counted once."""
        terms: list[nodes.Expr] = [node.right]
        left = node.left
        while isinstance(left, nodes.Add) and len(terms) < _PARTS:
            terms.append(left.right)
            left = left.left
        terms.append(left)
        self._counted(self._grows(node, terms), lambda *_: self._sum(terms[::-1], frame), node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Counted; a long one is joined in groups."""
        parts = node.nodes
        while len(parts) > _PARTS:
            parts = [_concat(parts[i : i + _PARTS], node) for i in range(0, len(parts), _PARTS)]
        self._counted(self._grows(node, parts), super().visit_Concat, _concat(parts, node), frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """A step, unless one side is a constant."""
        self.write("(" if any(map(_is_constant, (node.expr, *(op.expr for op in node.ops)))) else "(environment.tick() or ")
        super().visit_Compare(node, frame)
        self.write(")")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        # what is printed at the top is counted by `concat`; in a macro or a block it is kept in a list first
        self._printed = node
        self.write("environment.made(" if frame.buffer else "")
        super()._output_child_pre(node, frame, finalize)

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        super()._output_child_post(node, frame, finalize)
        self.write(")" if frame.buffer else "")

    def _grows(self, node: nodes.Expr, terms: Sequence[nodes.Expr]) -> bool:
        variables = sum(not _is_constant(term) for term in terms)
        return variables > (_TERMS if node is self._printed else 1)

    def _sum(self, terms: Sequence[nodes.Expr], frame: Frame) -> None:
        self.write("(")
        for index, term in enumerate(terms):
            self.write(" + " if index else "")
            self.visit(term, frame)
        self.write(")")

    def _counted(self, counted: bool, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.made(" if counted else "")
        visit(node, frame)
        self.write(")" if counted else "")


def _concat(parts: list[nodes.Expr], like: nodes.Concat) -> nodes.Concat:
    made = nodes.Concat(parts, lineno=like.lineno)
    made.environment = like.environment
    return made


def _is_constant(node: nodes.Expr) -> bool:
    return isinstance(node, nodes.Const) and not (isinstance(node.value, str) and len(node.value) > _LONGEST_TEXT)


def _all_constant(items: Iterable[nodes.Expr]) -> bool:
    return all(map(_is_constant, items))
