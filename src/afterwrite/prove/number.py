"""numeric's arithmetic, digit for digit: scales, rounding, and the scale that a quotient gets."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal

# No sum, difference or product of numbers that come from rows is ever rounded at this precision.
_EXACT = Context(prec=2000, Emax=999_999, Emin=-999_999)


def number_text(value: Decimal) -> str:
    """numeric never prints an exponent, and keeps its trailing zeroes."""
    return format(value, "f")


def round_half_up(number: int | Decimal, scale: int) -> Decimal:
    """numeric's rounding: half away from zero."""
    return Decimal(number).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP, _EXACT)


def calculate(symbol: str, left: object, right: object) -> int | Decimal | float | None:
    """``left symbol right``, or None where it cannot be said exactly (or divides by zero)."""
    if isinstance(left, bool) or isinstance(right, bool):
        return None
    if isinstance(left, int) and isinstance(right, int):
        return _integers(symbol, left, right)
    if isinstance(left, int | Decimal) and isinstance(right, int | Decimal):
        return _numerics(symbol, Decimal(left), Decimal(right))
    if isinstance(left, int | Decimal | float) and isinstance(right, int | Decimal | float):
        return _floats(symbol, float(left), float(right))
    return None


def _integers(symbol: str, left: int, right: int) -> int | None:
    match symbol:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/" if right:
            return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
        case "%" if right:
            return abs(left) % abs(right) * (-1 if left < 0 else 1)
        case _:
            return None


def _numerics(symbol: str, left: Decimal, right: Decimal) -> Decimal | None:
    match symbol:
        case "+":
            return _EXACT.add(left, right)
        case "-":
            return _EXACT.subtract(left, right)
        case "*":
            return _EXACT.multiply(left, right)
        case "/" if right:
            return round_half_up(_EXACT.divide(left, right), _quotient_scale(left, right))
        case _:
            return None


def _floats(symbol: str, left: float, right: float) -> float | None:
    match symbol:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/" if right:
            return left / right
        case _:
            return None


def _quotient_scale(left: Decimal, right: Decimal) -> int:
    """How many digits a quotient has after the point: select_div_scale() in numeric.c."""
    weight_left, first_left = _leading(left)
    weight_right, first_right = _leading(right)
    weight = weight_left - weight_right - (1 if first_left <= first_right else 0)
    return min(max(16 - weight * 4, _scale(left), _scale(right), 0), 1000)


def _leading(number: Decimal) -> tuple[int, int]:
    """The place and the value of the first digit, in numeric's base of 10,000."""
    if not number:
        return 0, 0
    place = number.adjusted() // 4
    return place, int(abs(number).scaleb(-4 * place, _EXACT))


def _scale(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else 0
