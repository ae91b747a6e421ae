"""The POST paths of the protocols, without FastAPI's layers, which cost more than a question's share of a batch.

FastAPI describes these paths, and answers all others.
"""

import json
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from dwrl_jax.dialogue.tokenizers import one_line
from dwrl_jax.serving import protocols
from dwrl_jax.serving.failures import Refused, as_response
from dwrl_jax.serving.service import Service


@dataclass(frozen=True)
class Direct:
    """A path: the form of its body, and the function of a protocol that answers it."""

    form: TypeAdapter
    call: Callable[..., Awaitable]

    async def answer(self, service: Service, scope: Scope, body: bytes) -> Response:
        """The answer to a request, or what is wrong with it."""
        try:
            return JSONResponse(await self.call(self._read(scope, body), service))
        except Refused as refused:
            return as_response(refused)
        except Exception as error:
            return as_response(Refused(500, one_line(error)))

    def _read(self, scope: Scope, body: bytes):
        """The body in its form. Refused if it does not have that form."""
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # other kinds can be sent from any web page, without asking
            raise Refused(415, "send Content-Type: application/json", "Content-Type")
        try:
            said = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"not JSON: {one_line(error)}", "body") from None
        try:
            return self.form.validate_python(said)
        except ValidationError as error:
            raise _wrong_field(error, said) from None


def direct_paths() -> dict[str, Direct]:
    """The POST paths of all protocols."""
    routes = [route for router in protocols.routers() for route in router.routes if isinstance(route, APIRoute)]
    return {route.path: _direct(route.endpoint) for route in routes if "POST" in route.methods}


def _direct(call: Callable[..., Awaitable]) -> Direct:
    return Direct(TypeAdapter(typing.get_type_hints(call)["request"]), call)


def _wrong_field(error: ValidationError, said) -> Refused:
    """The first wrong field. The value itself is not repeated."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names, inside = [], said
    for part in first["loc"]:  # the names of types that were tried are among them
        known = isinstance(inside, dict) and part in inside or isinstance(inside, list) and isinstance(part, int)
        if known or first["type"] == "missing" and part == first["loc"][-1]:
            names.append(str(part))
            inside = inside[part] if known else None
    return Refused(400, first["msg"], ".".join(names) or "body")
