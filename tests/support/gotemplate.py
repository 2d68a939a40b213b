"""As much of Go's text/template as scripts/rollback.sh uses: https://pkg.go.dev/text/template

What is not known here raises Unsupported, and never gives a wrong answer.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

ACTION = re.compile(r"\{\{(?:(-)\s)?\s*(.*?)\s*(?:\s(-))?\}\}", re.S)
TOKEN = re.compile(r'\s*("(?:\\.|[^"\\])*"|\d+|\(|\)(?:\.\w+)*|:=|\$\w*(?:\.\w+)*|\.(?:\w+(?:\.\w+)*)?|\w+|\S)')
QUOTED = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
Variables = dict[str, Any]
Node = tuple[str, str, list[Any], list[Any]]  # word, pipeline, body and else


class Unsupported(Exception):
    """The template, or what it meets, is none that this module knows."""


def render(template: str, data: Any) -> str:
    """Returns what the template makes of the data, as kubectl's -o go-template prints it. Raises Unsupported."""
    pieces = list(split(template))
    tree = parse(pieces)
    if pieces:
        raise Unsupported(pieces)
    return "".join(run(tree, data, {"$": data}, {}))


def split(template: str) -> Iterator[tuple[str, str]]:
    """The texts and actions of a template, without the space that {{- and -}} trim."""
    end, trim = 0, False
    for found in ACTION.finditer(template):
        text = template[end : found.start()]
        text = text.lstrip() if trim else text
        yield "text", text.rstrip() if found[1] else text
        yield "action", found[2]
        end, trim = found.end(), bool(found[3])
    yield "text", template[end:].lstrip() if trim else template[end:]


def parse(pieces: list[tuple[str, str]]) -> list[Any]:
    """Takes the nodes up to an else, an end or the end of the template."""
    nodes: list[Any] = []
    while pieces and not (pieces[0][0] == "action" and re.match(r"(end|else)\b", pieces[0][1])):
        kind, text = pieces.pop(0)
        word, _, rest = text.partition(" ")
        if kind == "text":
            nodes.append(text)
        elif word in ("if", "with", "range", "define"):
            nodes.append(branches(word, rest, pieces))
        elif word == "template":
            nodes.append((word, rest, [], []))
        elif word in ("block", "break", "continue"):
            raise Unsupported(text)
        else:
            nodes.append(("print", text, [], []))
    return nodes


def branches(word: str, text: str, pieces: list[tuple[str, str]]) -> Node:
    """Takes the body of an action, what stands for it otherwise, and the end."""
    body, otherwise = parse(pieces), []
    _, ended = pieces.pop(0) if pieces else ("", "")
    if ended == "else":
        otherwise = parse(pieces)
        _, ended = pieces.pop(0) if pieces else ("", "")
    elif ended.startswith("else if "):
        return word, text, body, [branches("if", ended.removeprefix("else if "), pieces)]
    if ended != "end":
        raise Unsupported(text)
    return word, text, body, otherwise


def run(nodes: list[Any], dot: Any, variables: Variables, defined: dict[str, list[Any]]) -> Iterator[str]:
    """Prints the nodes. A variable that one declares, and a template, is there for those that follow it."""
    for node in nodes:
        if isinstance(node, str):
            yield node
            continue
        word, text, body, otherwise = node
        if word in ("define", "template"):
            name, _, text = text.partition(" ")
            if word == "define":
                defined[name] = body
            elif name in defined:
                _, value = pipeline(text, dot, variables)
                yield from run(defined[name], value, {"$": value}, defined)
            else:
                raise Unsupported(name)
            continue
        names, value = pipeline(text, dot, variables)
        if word == "print":
            if names:
                variables[names[0]] = value
            else:
                yield shown(value)
            continue
        inner = variables | dict.fromkeys(names, value)
        if word == "range" and value:
            for key, each in pairs(value, names):
                yield from run(body, each, variables | dict(zip(names, (key, each), strict=False)), defined)
        elif value:
            yield from run(body, value if word == "with" else dot, inner, defined)
        else:
            yield from run(otherwise, dot, inner, defined)


def pairs(value: Any, names: list[str]) -> list[tuple[Any, Any]]:
    """What a range goes through: of a map, sorted by key, only with a variable for each of the two."""
    if isinstance(value, dict) and len(names) == 2:
        return sorted(value.items())
    if isinstance(value, list) and not names:
        return list(enumerate(value))
    raise Unsupported(value)


def pipeline(text: str, dot: Any, variables: Variables) -> tuple[list[str], Any]:
    """The variables that it declares and its value."""
    tokens = [found[1] for found in TOKEN.finditer(text)]
    names: list[str] = []
    if ":=" in tokens[:4]:
        names = [each for each in tokens[: tokens.index(":=")] if each != ","]
        tokens = tokens[tokens.index(":=") + 1 :]
    value = call(tokens, dot, variables)
    if tokens or len(names) > 2:
        raise Unsupported(text)
    return names, value


def call(tokens: list[str], dot: Any, variables: Variables) -> Any:
    """The value of a function with its arguments, or of one operand, up to a closing parenthesis."""
    function = tokens.pop(0) if tokens and re.fullmatch(r"[a-z]+", tokens[0]) else ""
    values = []
    while tokens and not tokens[0].startswith(")"):
        values.append(operand(tokens, dot, variables))
    if not function and len(values) == 1:
        return values[0]
    if function in ("and", "or") and values:
        return next((each for each in values if bool(each) == (function == "or")), values[-1])
    if function == "not" and len(values) == 1:
        return not values[0]
    if function == "eq" and len(values) == 2 and all(isinstance(each, str) for each in values):
        return values[0] == values[1]
    if function == "index" and len(values) == 2:
        found, key = values
        if isinstance(found, dict) and isinstance(key, str):
            return found.get(key)
        if isinstance(found, list) and isinstance(key, int) and key < len(found):
            return found[key]
    if function == "print" and len(values) == 1:
        return "<nil>" if values[0] is None else shown(values[0])
    if function == "printf" and len(values) == 2 and values[0] == "%q" and isinstance(values[1], str):
        return quoted(values[1])
    raise Unsupported(function, values)


def operand(tokens: list[str], dot: Any, variables: Variables) -> Any:
    """The value of the next operand."""
    token = tokens.pop(0)
    if token[0] == '"':
        return json.loads(re.sub(r"\\x(..)", r"\\u00\1", token))
    if token.isdigit():
        return int(token)
    if token == "(":
        value = call(tokens, dot, variables)
        if not tokens:
            raise Unsupported("(")
        return chain(value, tokens.pop(0)[1:])
    if token[0] == ".":
        return chain(dot, token)
    if token[0] == "$":
        name, point, rest = token.partition(".")
        if name in variables:
            return chain(variables[name], point + rest)
    raise Unsupported(token)


def chain(value: Any, fields: str) -> Any:
    """The field of a field, as in .metadata.name; None if one is missing."""
    for name in filter(None, fields.split(".")):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Unsupported(fields)
        value = value.get(name)
    return value


def shown(value: Any) -> str:
    """How Go prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)
    raise Unsupported(value)


def quoted(text: str) -> str:
    """A quoted Go string: https://pkg.go.dev/strconv#Quote"""

    def escaped(letter: str) -> str:
        if letter in QUOTED or letter.isprintable():
            return QUOTED.get(letter, letter)
        if letter == "\v":
            return "\\v"
        if ord(letter) < 0x80:
            return f"\\x{ord(letter):02x}"
        return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"

    return f'"{"".join(map(escaped, text))}"'
