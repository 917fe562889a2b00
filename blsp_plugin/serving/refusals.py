"""What a caller is told when nothing comes of a request.

Authors
 * The blsp_plugin team 2026
"""

__all__ = ["Refusal", "one_line"]

LONGEST = 300  # characters of a message: it may quote what was sent
_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}


class Refusal(Exception):
    """A request that is not answered, as OpenAI's API says it.

    Arguments
    ---------
    message : str
        What is wrong and what to do; made one line.
    param : str, optional
        The field of the request that is meant.
    status : int
        Of HTTP.
    code : str, optional
        A word for programs.
    headers : dict, optional
        Of the HTTP response.

    Example
    -------
    >>> Refusal("give a text", "stop").json()["error"]["type"]
    'invalid_request_error'
    """

    def __init__(
        self, message, param=None, status=400, code=None, headers=None
    ):
        super().__init__(one_line(message))
        self.param = None if param is None else one_line(param)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def json(self):
        """The body of the response, a dict."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def one_line(text):
    """A text on one line that can be written down, and not too long.

    Arguments
    ---------
    text : str
        Any; half a surrogate pair from somebody's JSON, too.

    Returns
    -------
    str
    """
    text = str(text).encode("utf-8", "replace").decode("utf-8")
    text = " ".join(
        "".join(c if c.isprintable() else " " for c in text).split()
    )
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
