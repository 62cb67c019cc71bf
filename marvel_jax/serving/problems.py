"""What a client is told when it is refused: one shape of JSON, with a plain sentence."""

import math
from collections.abc import Mapping

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse


class ProblemBody(BaseModel):
    """The body of every answer that is not a success."""

    error: str = Field(description="What is wrong and what to do, in a plain sentence.")
    code: str = Field(description="The same in a word, for programs.")


class Problem(HTTPException):
    """A refused request.

    It is one of the framework's own, which it lets through from wherever a body is being read.
    """

    def __init__(
        self, status: int, code: str, error: str, *, retry_after: float | None = None
    ) -> None:
        super().__init__(status, error)
        self.code, self.error = code, error
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        """As HTTP."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        return problem_response(self.status_code, self.code, self.error, headers=headers)


def problem_response(
    status: int, code: str, error: str, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The JSON answer of a refusal."""
    body = ProblemBody(error=error, code=code).model_dump()
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


BUSY = "As many searches as this server takes at once are under way: try again in a moment."
FAULT = "A fault of the server: its log says more."
