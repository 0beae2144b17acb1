"""The one error type that users see: a sentence, where, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Location:
    """A place in a source file; ``line`` and ``column`` count from 1, 0 means unknown."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        """``file:line:column`` as far as it is known."""
        known = [self.file] + [str(n) for n in (self.line, self.column) if n]
        return ":".join(known)


class H2LearnError(Exception):
    """Something the user gave cannot be used.

    ``message`` is one sentence (what was expected, what was found, which name), ``location`` says where, ``hint``
    says what to try, ``excerpt`` is an optional source line with a caret below it.
    """

    def __init__(
        self, message: str, *, location: Location | str | None = None, hint: str = "", excerpt: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.location = location
        self.hint = hint
        self.excerpt = excerpt

    def render(self) -> str:
        """Return the text that the command line prints: ``file:line:col: error: ...`` and its hint."""
        prefix = f"{self.location}: " if self.location is not None else ""
        lines = [f"{prefix}error: {self.message}"]
        if self.excerpt:
            lines.append(self.excerpt)
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


def why(error: Exception) -> str:
    """Return in lower case what another library said, or of the operating system's errors what went wrong."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]
