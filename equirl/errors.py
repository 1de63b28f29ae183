"""The one error that users of equirl meet, and the sentences it is made of."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what a user gave: one line with the value, what was expected, and the nearest valid name.

    The command line prints it without a traceback and leaves with exit code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # values such as arrays bring line breaks


def unknown(kind: str, value: object, valid: Iterable[str]) -> UserError:
    """Return the error for a name that is not among the valid ones, offering the nearest.

    >>> unknown("method", "equitun", ["identity", "equitune"])
    UserError("unknown method 'equitun': expected one of identity, equitune; did you mean 'equitune'?")
    """
    names = [str(name) for name in valid]
    near = get_close_matches(str(value), names, n=1, cutoff=0.4) or [
        name for name in names if str(value).lower() == name.lower()
    ]
    shown = ", ".join(names if len(names) <= 12 else [*names[:12], f"... ({len(names)} in all)"])
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {value!r}: expected one of {shown}{hint}")


def check_seed(seed: int) -> None:
    """Raise a `UserError` unless a seed is one that NumPy and torch take.

    >>> check_seed(2**32 - 1)
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed}: expected a whole number from 0 to {2**32 - 1}")


def first_line(error: BaseException) -> str:
    r"""Return the first line that an error says, or its name where it says nothing.

    >>> first_line(RuntimeError("no kernel\nat all")), first_line(KeyboardInterrupt())
    ('no kernel', 'KeyboardInterrupt')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turn what SB3, torch and NumPy raise at wrong values, while something is built, into a `UserError`.

    >>> with in_one_line("dqn on CartPole-v1"):
    ...     int("one")
    Traceback (most recent call last):
    equirl.errors.UserError: dqn on CartPole-v1: invalid literal for int() with base 10: 'one'
    """
    try:
        yield
    except UserError:
        raise
    except (AssertionError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from None
