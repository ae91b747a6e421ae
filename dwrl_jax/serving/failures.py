"""Failures as answers. A failure has a status, a message and the field that is wrong; it is never a number."""

from starlette.responses import JSONResponse

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "does_not_fit_the_model",
    429: "queue_full",
    503: "unavailable",
    504: "timeout_error",
}


class Refused(Exception):
    """A request without a score. `param` is the wrong field; `retry_after` is in seconds."""

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.retry_after = status, message, param, retry_after


def as_response(refused: Refused) -> JSONResponse:
    """The body has the form that clients of OpenAI's API read."""
    error = {
        "message": _printable(refused.message),
        "type": KINDS.get(refused.status, "server_error" if refused.status >= 500 else "invalid_request_error"),
        "param": refused.param and _printable(refused.param),
        "code": refused.status,
    }
    headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
    return JSONResponse({"error": error}, refused.status, headers)


def _printable(text: str) -> str:
    """Without halves of surrogate pairs, which are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
