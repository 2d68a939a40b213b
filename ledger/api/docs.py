"""/api/docs/: the OpenAPI schema as a plain page, without scripts and without other hosts."""

from functools import cache
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from ledger.api.operations import schema
from ledger.api.problems import TYPES


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    return render(request, "ledger/api.html", {"operations": operations(), "problems": TYPES, "info": schema()["info"]})


@cache
def operations() -> list[dict[str, Any]]:
    """Returns what the page shows of each operation, in the order of the schema."""
    return [
        {
            "id": found["operationId"],
            "method": method.upper(),
            "path": path,
            "summary": found["summary"],
            "description": found.get("description", ""),
            "fields": [*map(parameter, found["parameters"]), *body(found)],
            "answers": [answer(status, each) for status, each in found["responses"].items() if status < 400],
            "errors": [status for status in found["responses"] if status >= 400],
        }
        for path, methods in schema()["paths"].items()
        for method, found in methods.items()
    ]


def parameter(given: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of the request's table for a parameter of the path, the query or the headers."""
    return field(given["name"], given["in"], given["schema"], given["required"]) | {
        "description": given.get("description", "")
    }


def body(operation: dict[str, Any]) -> list[dict[str, Any]]:
    content = operation.get("requestBody", {}).get("content", {})
    found = resolve(content.get("application/json", {}).get("schema", {}))
    required = found.get("required", [])
    return [field(name, "body", each, name in required) for name, each in found.get("properties", {}).items()]


def answer(status: int, found: dict[str, Any]) -> dict[str, Any]:
    body = resolve(found["content"]["application/json"]["schema"])
    fields = [field(name, "", each, False) for name, each in body.get("properties", {}).items()]
    return {"status": status, "description": found["description"], "fields": fields}


def field(name: str, where: str, given: dict[str, Any], required: bool) -> dict[str, Any]:
    description = given.get("description", "")
    return {"name": name, "where": where, "required": required, "form": form(given), "description": description}


def form(given: dict[str, Any]) -> str:
    """Returns the type of a value in words: `one of a, b`, `integer, 1 to 100`, `text, at most 64 characters`."""
    if "$ref" in given:
        found = resolve(given)
        return form(found) if "enum" in found else "object: " + ", ".join(found["properties"])
    if "allOf" in given:
        return form(given["allOf"][0])
    if "anyOf" in given:
        return " or ".join("null" if each == {"type": "null"} else form(each) for each in given["anyOf"])
    if "enum" in given:
        return "one of " + ", ".join(map(str, given["enum"]))
    if given.get("type") == "array":
        return f"list of {form(given['items'])}"
    if given.get("format") == "date-time":
        return "time"
    kind = str(given.get("type", "any"))
    words = {"string": "text", "boolean": "true or false"}.get(kind, kind)
    if "minimum" in given and given.get("maximum", 1e9) < 1e9:
        words += f", {given['minimum']} to {given['maximum']}"
    if "maxLength" in given:
        words += f", at most {given['maxLength']} characters"
    return words


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """Returns `given`, or the schema that it refers to."""
    if "$ref" not in given:
        return given
    found: dict[str, Any] = schema()["components"]["schemas"][given["$ref"].rpartition("/")[2]]
    return found
