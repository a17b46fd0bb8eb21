"""GBNF, the grammar language of llama.cpp, as Lark for llguidance.

Escapes, repetitions and white space follow `llama_grammar_parser` of llama.cpp.

A rule that is regular (it refers to no recursive rule and to no token) becomes a Lark terminal, so
that it is matched as one regular expression, as precisely as llama.cpp matches it character by
character. The other rules stay rules; the regular parts between their references become terminals.
A terminal inside a recursive rule takes the longest text that it matches.

llguidance ships a converter of its own; it renames rules so that they may collide, knows neither
token references nor `\\U` escapes, and leaves regular rules apart, whose longest matches then
exclude sentences of the grammar.

Pure; errors are `MalformedGrammar`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import count, groupby

MAX_NESTING = 100  # of parentheses
MAX_REPETITIONS = 2000
MAX_RULES = 10_000  # groups among them: llguidance recurses no deeper (`compile_lark` has the stack)
# terminals in one regular expression, unless the whole text has more: compiling takes time
# quadratic in them
_MAX_EXPRESSION = 4000

_BOUNDS = r"\{[ \t\r\n]*([0-9]*)[ \t\r\n]*(?:,[ \t\r\n]*([0-9]*)[ \t\r\n]*)?(\}?)"
_TOKENS = re.compile(
    rf"""
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
    | (?P<bounds>[*+?]|{_BOUNDS})
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

TokenId = Callable[[str], int]
"""The id of a token reference, `<[id]>` or `<text>` with its brackets. Raises `MalformedGrammar` for
one that the vocabulary lacks.
"""


class MalformedGrammar(Exception):
    """A grammar that is refused; the message is a reason for its author."""


@dataclass(frozen=True, slots=True)
class _Item:
    """`text` is the name of a rule, a Lark terminal or tokens by id as Lark writes them, as `kind`
    says: "rule", "terminal", "tokens". `bounds` are those of its repetition.
    """

    kind: str
    text: str
    bounds: str = ""


_Alternates = list[list[_Item]]


def gbnf_to_lark(text: str, token_id: TokenId, start: str = "start") -> str:
    """Lark rules of which `start` derives what the rule `root` of `text` derives. All other names
    begin with `start`, too.

    Raises `MalformedGrammar`, with a line number where there is one.
    """
    reader = _Reader(token_id)
    for match in _TOKENS.finditer(text):
        try:
            reader.take(match.lastgroup or "", match.group())
        except MalformedGrammar as error:
            raise MalformedGrammar(f"{error} (line {text.count(chr(10), 0, match.start()) + 1})") from None
    rules = reader.rules
    if "root" not in rules:
        raise MalformedGrammar('it has no rule named "root"')
    used = {item.text: None for items in map(_items, rules.values()) for item in items if item.kind == "rule"}
    missing = next((name for name in used if name not in rules), None)
    if missing is not None:
        raise MalformedGrammar(f'rule "{missing}" is used but not defined')
    if len(rules) > MAX_RULES:
        raise MalformedGrammar(f"its rules and the groups in them are more than {MAX_RULES}")
    return _Writer(rules, start).write()


class _Reader:
    """Makes rules of tokens in one pass. A group is a rule, too, whose name no author can write."""

    def __init__(self, token_id: TokenId) -> None:
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
                self.rules[self._name] = self._closed()
            case "end" if not self._open:
                return
            case "head" if not self._open:
                self._name = text[:-3].rstrip()
                self._open.append([[]])
            case _ if not self._open:
                raise MalformedGrammar("expected '::='" if kind == "rule" else "expected a rule name")
            case "or":
                self._open[-1].append([])
            case "open":
                if len(self._open) > MAX_NESTING:
                    raise MalformedGrammar(f"parentheses are nested more than {MAX_NESTING} deep")
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
                    raise MalformedGrammar("a token id is too large")
                return _Item("tokens", f"<[{'^' if text[0] == '!' else ''}{self._token_id(reference)}]>")
            case "unclosed":
                _literal(text[1:])  # an escape in it may be the fault
                raise MalformedGrammar("unexpected end of the grammar")
        nested = "expected ')'" if len(self._open) > 1 else f"expected a new line, got {text!r}"
        raise MalformedGrammar(_EXPECTED.get(text, nested))

    def _repeat(self, bounds: str) -> None:
        sequence = self._open[-1][-1]
        if not sequence:
            raise MalformedGrammar("a repetition needs an item before it")
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


def _bounds(text: str) -> str:
    """A repetition as Lark writes it."""
    match = re.match(_BOUNDS, {"*": "{0,}", "+": "{1,}", "?": "{0,1}"}.get(text, text))
    least, most, end = match.groups() if match else ("", None, "")
    if not least:
        raise MalformedGrammar("expected a number of repetitions")
    if not end:
        raise MalformedGrammar("expected '}'")
    low, high = int(least[:10]), int((least if most is None else most or least)[:10])
    if max(low, high) > MAX_REPETITIONS:
        raise MalformedGrammar(f"more than {MAX_REPETITIONS} repetitions")
    if high < low:
        raise MalformedGrammar(f"repetition {{{low},{high}}} has its bounds reversed")
    return f"{{{low},{'' if most == '' else high}}}"


def _literal(chars: str) -> str:
    return f"/{''.join(_escaped(_code(char)) for char in _CHARS.findall(chars))}/" if chars else '""'


def _class(chars: str) -> str:
    caret = "^" if chars.startswith("^") else ""
    ranges = ""
    for first, last in _RANGES.findall(chars, len(caret)):
        low, high = _code(first), _code(last or first)
        if high < low:
            raise MalformedGrammar("a character range is reversed")
        ranges += _escaped(low) if low == high else f"{_escaped(low)}-{_escaped(high)}"
    if not ranges:
        raise MalformedGrammar("a character class is empty")
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
        raise MalformedGrammar(f"unknown escape {char}")
    if len(digits) < n_digits:
        raise MalformedGrammar(f"expected {n_digits} hexadecimal digits after \\{escape}")
    code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise MalformedGrammar(f"{char} is no character")
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
        self._number = {name: number for number, name in enumerate(rules)}
        self._terminals: dict[str, str] = {}  # the body of a terminal of our own -> its name

    def write(self) -> str:
        lines = [f"{self._start}: {self._name('root')}"]
        lines += [f"{self._name(name)}: {self._body(name)}" for name in self._rules]
        lines += [f"{name}: {body}" for body, name in self._terminals.items()]
        return "\n".join(lines) + "\n"

    def _name(self, rule: str) -> str:
        name = f"{self._start}_{self._number[rule]}"
        return name.upper() if rule in self._regular else name

    def _body(self, name: str) -> str:
        if name not in self._regular:
            return " | ".join(self._mixed(sequence) for sequence in self._rules[name])
        again, ends = _split_tail_recursion(name, self._rules[name])
        end = " | ".join(self._plain(sequence) for sequence in ends)
        return f"({' | '.join(self._plain(sequence) for sequence in again)})* ({end})" if again else end

    def _plain(self, items: Iterable[_Item]) -> str:
        return " ".join((self._name(i.text) if i.kind == "rule" else i.text) + i.bounds for i in items) or '""'

    def _mixed(self, sequence: list[_Item]) -> str:
        """A sequence of a recursive rule: regular items in a row become one terminal."""
        parts: list[str] = []
        for regular, items in groupby(sequence, lambda i: i.text in self._regular or i.kind == "terminal"):
            body = self._plain(items)
            own = f"{self._start}_own{len(self._terminals)}".upper()
            parts.append(self._terminals.setdefault(body, own) if regular else body)
        return " ".join(parts) or '""'


def _regular_rules(rules: dict[str, _Alternates]) -> set[str]:
    """The rules that a finite automaton can match, a rule that only ends with itself (`ws ::= ([
    \\t] ws)?`) among them.

    One whose expression would be huge (30 rules that each double the next) stays a rule: rules
    share what terminals repeat.
    """
    rests = {
        name: [item for alternates in _split_tail_recursion(name, rule) for item in _items(alternates)]
        for name, rule in rules.items()
    }
    most = max(_MAX_EXPRESSION, sum(map(len, rests.values())))
    uses = {name: [item.text for item in items if item.kind == "rule"] for name, items in rests.items()}
    order = TopologicalSorter(uses)
    with suppress(CycleError):  # rules in a cycle, and those that use one, never get ready
        order.prepare()
    sizes: dict[str, int] = {}  # of regular rules, with all that they use
    while ready := order.get_ready():
        for name in ready:
            size = sum(sizes[item.text] if item.kind == "rule" else 1 for item in rests[name])
            if size <= most and all(item.kind != "tokens" for item in rests[name]):
                sizes[name] = size
                order.done(name)
    return set(sizes)


def _items(alternates: _Alternates) -> list[_Item]:
    return [item for sequence in alternates for item in sequence]


def _split_tail_recursion(name: str, alternates: _Alternates) -> tuple[_Alternates, _Alternates]:
    """Alternates that end with the rule itself, without that end, and the others."""
    itself = _Item("rule", name)
    again = [sequence[:-1] for sequence in alternates if len(sequence) > 1 and sequence[-1] == itself]
    return again, [sequence for sequence in alternates if len(sequence) < 2 or sequence[-1] != itself]
