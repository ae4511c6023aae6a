"""The one exception of the package."""


class StoreError(Exception):
    """Something is wrong with the store or with what was asked of it; the message is one line and says what to do."""


def one_line(error: BaseException) -> str:
    """The message of `error` on one line, without the source excerpt that DuckDB puts below it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).split("\n\nLINE ")[0]
    return " ".join(text.split()) or type(error).__name__
