"""Symbolic sizes: from the exporter's expressions to programs over the spec's symbols.

The exporter names its own symbols: a sample of ``height`` that must be a multiple of 4 comes out as
``[s53, 4, 4*s75, 4*s95]``. Solving the inputs' shapes for the spec's symbols gives ``s75 = height / 4``; put
into any other shape, that leaves exact divisions only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy  # type: ignore[import-untyped, unused-ignore]
from torch.utils._sympy.functions import CleanDiv, FloorDiv

from fastdiff.config import TensorSpec
from fastdiff.targets.graph import Dim

__all__ = ["Symbols"]


class Symbols:
    """The exporter's symbols in terms of the spec's, found from the shapes of the inputs.

    ``inputs`` pairs each TensorSpec with the captured shape. Raises ValueError for a size that was captured
    as a number where the spec has a symbol, or as an expression of another kind than ``number * symbol``.
    """

    def __init__(self, inputs: Iterable[tuple[TensorSpec, Iterable[Any]]]) -> None:
        self._known: dict[sympy.Symbol, sympy.Expr] = {}
        for spec, shape in inputs:
            for captured, (factor, name) in zip(shape, spec.factors(), strict=True):
                if name is not None:
                    self._solve(f"{spec.name}: {name}", _expression(captured), factor * _symbol(name))

    def _solve(self, where: str, captured: sympy.Expr, wanted: sympy.Expr) -> None:
        coefficient, rest = captured.as_coeff_Mul()
        if not isinstance(rest, sympy.Symbol):
            raise ValueError(f"{where} was captured as {captured}, wanted a number times one symbol")
        self._known.setdefault(rest, wanted / coefficient)

    def dim(self, size: Any) -> Dim:
        """The program of one size, a number or a SymInt. Raises ValueError for what a program cannot say."""
        program = self._program(_expression(size))
        return program[0] if len(program) == 1 else program

    def _program(self, expression: sympy.Expr) -> tuple[int | str, ...]:
        if isinstance(expression, (FloorDiv, CleanDiv)):
            return (*self._program(expression.args[0]), *self._program(expression.args[1]), "//")
        if not expression.has(sympy.Function):
            return self._polynomial(expression)
        if isinstance(expression, sympy.Add):
            return _joined([self._program(term) for term in expression.args], "+")
        if isinstance(expression, sympy.Mul):
            return _joined([self._program(factor) for factor in expression.args], "*")
        raise ValueError(f"size {expression} is no sum, product or floor division")

    def _polynomial(self, expression: sympy.Expr) -> tuple[int | str, ...]:
        """Terms over one denominator: ``height*width/4`` is ``("height", "width", "*", 4, "//")``."""
        if unknown := expression.free_symbols - self._known.keys():
            raise ValueError(f"size {expression} has {unknown}, which the shape of no input gives")
        numerator, denominator = sympy.fraction(sympy.together(sympy.expand(expression.subs(self._known))))
        if not denominator.is_Integer:
            raise ValueError(f"size {expression} is no polynomial")
        terms = sorted(sympy.Add.make_args(sympy.expand(numerator)), key=_negative_last)
        program = _term(terms[0], terms[0])
        for term in terms[1:]:
            negative = term.as_coeff_Mul()[0] < 0
            program += (*_term(-term if negative else term, term), "-" if negative else "+")
        return program if denominator == 1 else (*program, int(denominator), "//")


def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


def _expression(size: Any) -> sympy.Expr:
    return size.node.expr if hasattr(size, "node") else sympy.Integer(size)


def _negative_last(term: sympy.Expr) -> tuple[bool, str]:
    """Order in which no partial sum is negative, for sizes of which the whole is none."""
    return bool(term.as_coeff_Mul()[0] < 0), str(term)


def _term(term: sympy.Expr, shown: sympy.Expr) -> tuple[int | str, ...]:
    """One product of numbers and symbols, a power as repeated factors."""
    factors: list[tuple[int | str, ...]] = []
    for factor in sympy.Mul.make_args(term):
        base, exponent = factor.as_base_exp()
        if factor.is_Integer:
            factors.append((int(factor),))
        elif isinstance(base, sympy.Symbol) and exponent.is_Integer and exponent > 0:
            factors += [(base.name,)] * int(exponent)
        else:
            raise ValueError(f"size {shown} is no polynomial")
    factors.sort(key=lambda factor: isinstance(factor[0], int))
    return _joined(factors, "*")


def _joined(programs: list[tuple[int | str, ...]], operator: str) -> tuple[int | str, ...]:
    program = programs[0]
    for following in programs[1:]:
        program += (*following, operator)
    return program
