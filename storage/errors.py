"""The exceptions of the package, and whether trying again can help."""


class StoreError(Exception):
    """Something is wrong with the store or with what was asked of it; the message is one line and says what to do."""


class NoStore(StoreError):
    """There is no store at an address."""


_PASSING = ("NETWORK_CONNECTION", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "REQUEST_TIMEOUT", "INTERNAL_FAILURE", "curlCode")
"""What Arrow says of a request to S3 that another try may bring through."""


def out_of_reach(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that a remote backend did not answer, not a full disk or bad input."""
    while error is not None:
        if isinstance(error, (ConnectionError, TimeoutError)):
            return True
        if isinstance(error, OSError) and any(mark in str(error) for mark in _PASSING):
            return True
        error = error.__cause__
    return False


def one_line(error: BaseException) -> str:
    """The message of `error` on one line, without the source excerpt that DuckDB puts below it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).split("\n\nLINE ")[0]
    return " ".join(text.split()) or type(error).__name__
