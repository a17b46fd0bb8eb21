"""GBNF, the grammar language of llama.cpp, as Lark for llguidance.

Escapes, repetitions and white space follow `llama_grammar_parser` of llama.cpp.

A rule that is regular (it refers to no recursive rule and to no token) becomes a Lark terminal, so
that it is matched as one regular expression, as precisely as llama.cpp matches it character by
character. The other rules stay rules; the regular parts between their references become terminals.
A terminal inside a recursive rule takes the longest text that it matches.

llguidance ships a converter of its own; it renames rules so that they may collide, knows neither
token references nor `\\U` escapes, and leaves regular rules apart, whose longest matches then
exclude sentences of the grammar.

Pure; errors are `RefusedText`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import chain, count, groupby

from erllama.grammar.constraint import RefusedText
from erllama.grammar.expression import check_optional_parts

MAX_NESTING = 100  # of parentheses
MAX_REPETITIONS = 2000
MAX_RULES = 10_000  # groups among them: llguidance recurses no deeper (`compile_lark` has the stack)
# terminals in one regular expression, unless the whole text has more: compiling takes time
# quadratic in them
_MAX_EXPRESSION = 4000

_TOKENS = re.compile(
    r"""
      (?P<blank>[ \t]+|\#[^\r\n]*)
    | (?P<line>[\r\n]+)
    | (?P<head>[A-Za-z0-9-]+[ \t]*::=)
    | (?P<rule>[A-Za-z0-9-]+)
    | (?P<literal>"(?:[^"\\]|\\.)*")
    | (?P<class>\[(?:[^\]\\]|\\.)*\])
    | (?P<unclosed>["\[].*)
    | (?P<tokens>!?<(?:\[[0-9]+\]|(?!\[)[^>]*)>)
    | (?P<any>\.)
    | (?P<open>\()
    | (?P<or>\|)
    | (?P<close>\))
    | (?P<bounds>[*+?]|\{[0-9, \t\r\n]*\}?)
    | (?P<other>.)
    | (?P<end>\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_EXPECTED = {"!": "expected '<' after '!'", "<": "expected '>' after the id or the text of a token"}
_CHAR = r"\\(?:x[0-9a-fA-F]{0,2}|u[0-9a-fA-F]{0,4}|U[0-9a-fA-F]{0,8}|.)|[^\\]"
_CHARS = re.compile(_CHAR, re.DOTALL)
_RANGES = re.compile(f"({_CHAR})(?:-({_CHAR}))?", re.DOTALL)
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_PLAIN_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}


@dataclass(frozen=True, slots=True)
class _Item:
    """`text` is the name of a rule, a Lark terminal or tokens by id as Lark writes them, as `kind`
    says: "rule", "terminal", "tokens". `bounds` are those of its repetition.
    """

    kind: str
    text: str
    bounds: str = ""


_Alternates = list[list[_Item]]


def gbnf_to_lark(text: str, token_id: Callable[[str], int], start: str = "start") -> str:
    """Lark rules of which `start` derives what the rule `root` of `text` derives. All other names
    begin with `start`, too. `token_id` gives the id of a reference, `<[id]>` or `<text>` with its
    brackets.

    Raises `RefusedText`, with a line number where there is one.
    """
    reader = _Reader(token_id)
    for match in _TOKENS.finditer(text):
        try:
            reader.take(match.lastgroup or "", match.group())
        except RefusedText as error:
            raise RefusedText(f"{error} (line {text.count(chr(10), 0, match.start()) + 1})") from None
    rules = reader.rules
    if "root" not in rules:
        raise RefusedText('it has no rule named "root"')
    if len(rules) > MAX_RULES:
        raise RefusedText(f"its rules and the groups in them are more than {MAX_RULES}")
    return _Writer(rules, start).write()


class _Reader:
    """Makes rules of tokens in one pass. A group is a rule, too, whose name no author can write."""

    def __init__(self, token_id: Callable[[str], int]) -> None:
        self.rules: dict[str, _Alternates] = {}
        self._token_id = token_id
        self._numbers = count()
        self._name = ""  # of the rule that is being read
        self._open: list[_Alternates] = []  # what there is of it, and of the groups around the place
        self._before = ""  # the kind of the token before this

    def take(self, kind: str, text: str) -> None:
        match kind:
            case "blank":
                return
            case "line" if len(self._open) != 1 or self._before in ("head", "or"):
                return
            case "line" | "end" if len(self._open) == 1:
                self.rules[self._name] = self._iterated(self._closed())
            case "end" if not self._open:
                return
            case "head" if not self._open:
                self._name = text[:-3].rstrip()
                self._open.append([[]])
            case _ if not self._open:
                raise RefusedText("expected '::='" if kind == "rule" else "expected a rule name")
            case "or":
                self._open[-1].append([])
            case "open":
                if len(self._open) > MAX_NESTING:
                    raise RefusedText(f"parentheses are nested more than {MAX_NESTING} deep")
                self._open.append([[]])
            case "close" if len(self._open) > 1:
                group = self._group(self._closed())
                self._open[-1][-1].append(group)
            case "bounds":
                self._repeat(_bounds(text))
            case _:
                self._open[-1][-1].append(self._item(kind, text))
        self._before = kind

    def _item(self, kind: str, text: str) -> _Item:
        match kind:
            case "rule":
                return _Item("rule", text)
            case "literal":
                return _Item("terminal", _literal(text[1:-1]))
            case "class":
                return _Item("terminal", _class(text[1:-1]))
            case "any":
                return _Item("terminal", "/(?s:.)/")
            case "tokens":
                reference = text.lstrip("!")
                if reference.startswith("<[") and int(reference[2:-2][:11]) >= 2**31:
                    raise RefusedText("a token id is too large")
                return _Item("tokens", f"<[{'^' if text[0] == '!' else ''}{self._token_id(reference)}]>")
            case "unclosed":
                _literal(text[1:])  # an escape in it may be the fault
                raise RefusedText("unexpected end of the grammar")
        nested = "expected ')'" if len(self._open) > 1 else f"expected a new line, got {text!r}"
        raise RefusedText(_EXPECTED.get(text, nested))

    def _repeat(self, bounds: str) -> None:
        sequence = self._open[-1][-1]
        if not sequence:
            raise RefusedText("a repetition needs an item before it")
        once = self._group([[sequence[-1]]]) if sequence[-1].bounds else sequence[-1]
        sequence[-1] = replace(once, bounds=bounds) if bounds != "{0,0}" else _Item("terminal", '""')

    def _group(self, alternates: _Alternates) -> _Item:
        name = f"({next(self._numbers)})"
        self.rules[name] = alternates
        return _Item("rule", name)

    def _closed(self) -> _Alternates:
        """The innermost alternates. A group (perhaps an optional one) that is all there is of one
        is replaced by its own.
        """
        alternates: _Alternates = []
        for sequence in self._open.pop():
            match sequence:
                case [_Item("rule", text=name, bounds="" | "{0,1}" as bounds)] if name.startswith("("):
                    alternates += self.rules.pop(name)
                    alternates += [[]] if bounds else []
                case _:
                    alternates.append(sequence)
        return alternates

    def _iterated(self, alternates: _Alternates) -> _Alternates:
        """A rule that ends with itself (`ws ::= ([ \\t] ws)?`) as a repetition, which is regular."""
        itself = _Item("rule", self._name)
        again = [sequence[:-1] for sequence in alternates if len(sequence) > 1 and sequence[-1] == itself]
        ends = [sequence for sequence in alternates if len(sequence) < 2 or sequence[-1] != itself]
        if not again or not ends:
            return alternates
        return [[replace(self._group(again), bounds="{0,}"), self._group(ends)]]


def _bounds(text: str) -> str:
    """A repetition as Lark writes it."""
    least, comma, most = {"*": "0,", "+": "1,", "?": "0,1"}.get(text, text.strip("{}")).partition(",")
    least, most = least.strip(), most.strip()
    if not least.isdecimal() or not (most or "0").isdecimal():
        raise RefusedText("expected a number of repetitions")
    if text[0] == "{" and text[-1] != "}":
        raise RefusedText("expected '}'")
    low, high = int(least[:10]), int((most or least)[:10])
    if max(low, high) > MAX_REPETITIONS:
        raise RefusedText(f"more than {MAX_REPETITIONS} repetitions")
    if high < low:
        raise RefusedText(f"repetition {{{low},{high}}} has its bounds reversed")
    return f"{{{low},{'' if comma and not most else high}}}"


def _literal(chars: str) -> str:
    return f"/{''.join(_escaped(_code(char)) for char in _CHARS.findall(chars))}/" if chars else '""'


def _class(chars: str) -> str:
    caret = "^" if chars.startswith("^") else ""
    ranges = ""
    for first, last in _RANGES.findall(chars, len(caret)):
        low, high = _code(first), _code(last or first)
        if high < low:
            raise RefusedText("a character range is reversed")
        ranges += _escaped(low) if low == high else f"{_escaped(low)}-{_escaped(high)}"
    if not ranges:
        raise RefusedText("a character class is empty")
    return f"/[{caret}{ranges}]/"


def _code(char: str) -> int:
    """The code point of one character of a literal or a class, escaped or not."""
    if not char.startswith("\\"):
        return ord(char)
    escape, digits = char[1], char[2:]
    if escape in _PLAIN_ESCAPES:
        return ord(_PLAIN_ESCAPES[escape])
    n_digits = _HEX_DIGITS.get(escape)
    if n_digits is None:
        raise RefusedText(f"unknown escape {char}")
    if len(digits) < n_digits:
        raise RefusedText(f"expected {n_digits} hexadecimal digits after \\{escape}")
    code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise RefusedText(f"{char} is no character")
    return code


def _escaped(code: int) -> str:
    """A character in a regular expression, inside a class or outside."""
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"


class _Writer:
    """Rules as Lark. Names are numbered, since Lark's decide by their case whether a rule is a
    terminal. Groups have names, too: llguidance's parser takes some thirty nested parentheses.
    """

    def __init__(self, rules: dict[str, _Alternates], start: str) -> None:
        self._rules = rules
        self._start = start
        self._regular = _regular_rules(rules)
        self._names = {name: f"{start}_{number}" for number, name in enumerate(rules)}
        self._names |= {name: self._names[name].upper() for name in self._regular}
        self._terminals: dict[str, str] = {}  # the body of a terminal of our own -> its name

    def write(self) -> str:
        lines = [f"{self._start}: {self._names['root']}"]
        for name, alternates in self._rules.items():
            sequence = self._plain if name in self._regular else self._mixed
            lines.append(f"{self._names[name]}: {' | '.join(map(sequence, alternates))}")
        lines += [f"{name}: {body}" for body, name in self._terminals.items()]
        return "\n".join(lines) + "\n"

    def _plain(self, items: Iterable[_Item]) -> str:
        return " ".join(self._names.get(item.text, item.text) + item.bounds for item in items) or '""'

    def _mixed(self, sequence: list[_Item]) -> str:
        """A sequence of a recursive rule: regular items in a row become one terminal."""
        parts: list[str] = []
        for regular, items in groupby(sequence, lambda i: i.text in self._regular or i.kind == "terminal"):
            of_group = list(items)
            body = self._plain(of_group)
            if regular:
                check_optional_parts(_n_optional(of_group, self._regular))
            own = f"{self._start}_own{len(self._terminals)}".upper()
            parts.append(self._terminals.setdefault(body, own) if regular else body)
        return " ".join(parts) or '""'


def _regular_rules(rules: dict[str, _Alternates]) -> dict[str, int]:
    """The rules that a finite automaton can match, and how many parts of each may be left out.

    One whose expression would be huge (30 rules that each double the next) stays a rule: rules
    share what terminals repeat.
    """
    items = {name: [*chain.from_iterable(alternates)] for name, alternates in rules.items()}
    most = max(_MAX_EXPRESSION, sum(map(len, items.values())))
    order = TopologicalSorter({name: [i.text for i in items[name] if i.kind == "rule"] for name in rules})
    with suppress(CycleError):  # rules in a cycle, and those that use one, never get ready
        order.prepare()
    sizes: dict[str, int] = {}
    optional: dict[str, int] = {}
    while ready := order.get_ready():
        for name in ready:
            if name not in rules:
                raise RefusedText(f'rule "{name}" is used but not defined')
            size = sum(sizes[item.text] if item.kind == "rule" else 1 for item in items[name])
            if size <= most and all(item.kind != "tokens" for item in items[name]):
                optional[name] = max(_n_optional(sequence, optional) for sequence in rules[name])
                check_optional_parts(optional[name])
                sizes[name] = size
                order.done(name)
    return optional


def _n_optional(items: Iterable[_Item], of_rules: Mapping[str, int]) -> int:
    """How many parts of an expression, which are `items` in a row, may be left out."""
    return sum(max(of_rules.get(item.text, 0), item.bounds.startswith("{0,")) for item in items)
