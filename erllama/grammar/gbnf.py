"""Checks on a GBNF grammar before llama.cpp may see it.

llama.cpp takes grammars from its own tools and is not hardened against others. Measured on the build we pin (llama-cpp-python 0.3.36):

    a ::= b, b may be empty, root ::= a root "x" | "y"   std::bad_alloc, uncaught: the process aborts (its left-recursion check misses
                                                         rules that are empty only through another rule)
    30 rules a_i ::= a_j a_j over one that may be empty  the same: 2^30 parser stacks
    30 rules a_i ::= a_j | a_j | "y"                     14 s in its left-recursion check, which visits every path
    30,000 nested parentheses                            stack overflow, SIGSEGV
    "x"{5,2}                                             an endless loop that eats all memory (5 - 2 wraps around)
    ("a"? "b"?){64}                                      minutes for one token: every optional item is one more stack
    "x"{0,3000}                                          silently unbounded
    the empty string                                     a sampler that constrains nothing

So this module parses GBNF itself, expands repetitions into rules exactly as llama.cpp does, and refuses what would be dangerous, with a
reason for the caller. What it accepts, llama.cpp may still refuse (by returning NULL): see `llama_grammar.check_grammar`.

Left open, because it cannot be decided by looking at the grammar: ambiguity. `s ::= "x" s "1" | "x" s "2" | "y"` doubles the stacks with
every "x" that the model writes (20 s for the 14th), and llama.cpp's filter takes time exponential in the length of a token where several
stacks survive each character. Nothing here or there bounds that: whoever lets strangers send grammars trusts them with the engine's time.

Pure: no clock, no thread, no llama_cpp. Sizes in bytes and counts as named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from erllama.errors import InvalidParameter

MAX_GRAMMAR_BYTES = 64 * 1024
MAX_NESTING = 100  # of parentheses; llama.cpp recurses once per level
MAX_REPETITIONS = 2000  # MAX_REPETITION_THRESHOLD of llama.cpp; beyond it {0,n} silently means {0,}
MAX_RULES = 16_384  # after expansion; its left-recursion check may recurse through all of them
MAX_ELEMENTS = 262_144  # after expansion, of 8 bytes each
MAX_PATHS = 1_000_000  # what that check may visit, about 13 ns each
MAX_STACKS = 4096  # parser stacks that one position may expand to; an enum of n strings needs n
MAX_SKIPPED = 48  # items in a row that may be empty; 48 cost 0.9 s to try on a vocabulary of 50k, 64 cost 4 s

JSON_OBJECT_GBNF = r"""
root ::= object
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws ( member ( "," ws member )* )? "}"
member ::= string ":" ws value ws
array ::= "[" ws ( value ws ( "," ws value ws )* )? "]"
string ::= "\"" char* "\""
char ::= [^"\\\x00-\x1F\x7F] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} )
number ::= "-"? ( "0" | [1-9] [0-9]{0,15} ) ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,3} )?
# Bounded, so that a model cannot emit blanks until its budget is spent.
ws ::= ( " " | "\n" [ \t]{0,20} )?
"""
"""Any JSON object, and nothing after it: only the end of the reply may follow the closing brace."""

_TERMINAL = -1
_NAME = re.compile(r"[A-Za-z0-9-]+")
_DIGITS = re.compile(r"[0-9]+")
_HEX = re.compile(r"[0-9a-fA-F]*")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_PLAIN_ESCAPES = frozenset('trn\\"[]-')

_Sequence = list[int]  # elements: _TERMINAL, or the index of a rule
_Rule = list[_Sequence]  # alternates


class _Malformed(Exception):
    """A grammar that we refuse; becomes `InvalidParameter` at the boundary."""


def check_gbnf(gbnf: str, *, param: str = "grammar") -> None:
    """Raise `InvalidParameter(param=param)` with the reason unless the grammar is well-formed and safe to hand to llama.cpp."""
    try:
        _check_text(gbnf)
        rules = _Parser(gbnf).parse()
        _check_cost(rules)
    except _Malformed as error:
        raise InvalidParameter(f"the grammar is refused: {error}", param=param) from None


def _check_text(gbnf: str) -> None:
    if not isinstance(gbnf, str):
        raise _Malformed(f"it must be a GBNF string, got {type(gbnf).__name__}")
    if not gbnf.strip():
        raise _Malformed("it is empty")
    if "\0" in gbnf:
        raise _Malformed("it contains a NUL character")
    try:
        n_bytes = len(gbnf.encode())
    except UnicodeEncodeError:
        raise _Malformed("it contains a lone surrogate") from None
    if n_bytes > MAX_GRAMMAR_BYTES:
        raise _Malformed(f"it has {n_bytes} bytes, at most {MAX_GRAMMAR_BYTES}")


@dataclass(frozen=True, slots=True)
class _Rules:
    """Rules by index, as llama.cpp would number them, with the names that the author gave (None for expansions)."""

    bodies: list[_Rule]
    names: list[str | None]

    def name(self, index: int) -> str:
        return self.names[index] or "a repetition or group"


class _Parser:
    """GBNF to rules, following llama_grammar_parser statement by statement. Raises `_Malformed` with a line number."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ids: dict[str, int] = {}
        self._names: list[str | None] = []
        self._bodies: list[_Rule | None] = []
        self._n_elements = 0

    def parse(self) -> _Rules:
        self._skip_space(newlines=True)
        while self._at < len(self._text):
            self._parse_rule()
        if "root" not in self._ids:
            raise _Malformed('it has no rule named "root"')
        bodies = [body for body in self._bodies if body is not None]
        if len(bodies) < len(self._bodies):
            missing = self._names[self._bodies.index(None)]
            raise _Malformed(f'rule "{missing}" is used but not defined')
        return _Rules(bodies, self._names)

    # -- lexical

    def _fail(self, reason: str) -> NoReturn:
        raise _Malformed(f"{reason} (line {self._text.count(chr(10), 0, self._at) + 1})")

    def _peek(self, offset: int = 0) -> str:
        at = self._at + offset
        return self._text[at] if at < len(self._text) else ""

    def _skip_space(self, *, newlines: bool) -> None:
        blanks = " \t\r\n" if newlines else " \t"
        while (char := self._peek()) and (char in blanks or char == "#"):
            if char != "#":
                self._at += 1
                continue
            while self._peek() not in ("", "\r", "\n"):
                self._at += 1

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            self._fail(f"expected {what}")
        self._at = match.end()
        return match.group()

    def _expect(self, token: str) -> None:
        if not self._text.startswith(token, self._at):
            self._fail(f"expected {token!r}")
        self._at += len(token)

    def _take_char(self) -> None:
        """One character of a literal or a class, escaped or not."""
        char = self._peek()
        if not char:
            self._fail("unexpected end of the grammar")
        if char != "\\":
            self._at += 1
            return
        escape = self._peek(1)
        if escape in _HEX_DIGITS:
            n_digits = _HEX_DIGITS[escape]
            digits = _HEX.match(self._text, self._at + 2, self._at + 2 + n_digits)
            if digits is None or len(digits.group()) < n_digits:
                self._fail(f"expected {n_digits} hexadecimal digits after \\{escape}")
            self._at += 2 + n_digits
        elif escape and escape in _PLAIN_ESCAPES:
            self._at += 2
        else:
            self._fail(f"unknown escape \\{escape}")

    # -- rules

    def _rule_id(self, name: str) -> int:
        if name not in self._ids:
            self._ids[name] = self._new_rule(name)
        return self._ids[name]

    def _new_rule(self, name: str | None = None) -> int:
        if len(self._bodies) >= MAX_RULES:
            self._fail(f"it expands to more than {MAX_RULES} rules")
        self._bodies.append(None)
        self._names.append(name)
        return len(self._bodies) - 1

    def _count(self, n_elements: int) -> None:
        self._n_elements += n_elements
        if self._n_elements > MAX_ELEMENTS:
            self._fail(f"it expands to more than {MAX_ELEMENTS} elements")

    def _parse_rule(self) -> None:
        rule = self._rule_id(self._take(_NAME, "a rule name"))
        self._skip_space(newlines=False)
        self._expect("::=")
        self._skip_space(newlines=True)
        self._bodies[rule] = self._parse_alternates(depth=0)
        if self._at < len(self._text) and self._peek() not in "\r\n":
            self._fail(f"expected a new line, got {self._peek()!r}")
        self._skip_space(newlines=True)

    def _parse_alternates(self, depth: int) -> _Rule:
        if depth > MAX_NESTING:
            self._fail(f"parentheses are nested more than {MAX_NESTING} deep")
        alternates = [self._parse_sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            self._skip_space(newlines=True)
            alternates.append(self._parse_sequence(depth))
        return alternates

    def _parse_sequence(self, depth: int) -> _Sequence:
        sequence: _Sequence = []
        last = 0  # where the item begins that a repetition would apply to
        while char := self._peek():
            if char in "*+?{":
                least, most = self._take_bounds(nested=depth > 0)
                if last == len(sequence):
                    self._fail("a repetition needs an item before it")
                self._repeat(sequence, last, least, most)
                continue
            item = self._take_item(char, depth)
            if item is None:
                break
            self._count(len(item))
            last = len(sequence)
            sequence += item
            self._skip_space(newlines=depth > 0)
        return sequence

    def _take_item(self, char: str, depth: int) -> _Sequence | None:
        """The next item; None if what follows is none, i.e. ends the sequence."""
        match char:
            case '"':
                return self._take_literal()
            case "[":
                self._take_class()
            case "<" | "!":
                self._take_token()
            case ".":
                self._at += 1
            case "(":
                return self._take_group(depth)
            case _ if _NAME.match(char):
                return [self._rule_id(self._take(_NAME, "a rule name"))]
            case _:
                return None
        return [_TERMINAL]

    def _take_literal(self) -> _Sequence:
        self._at += 1
        n_chars = 0
        while self._peek() != '"':
            self._take_char()
            n_chars += 1
        self._at += 1
        return [_TERMINAL] * n_chars

    def _take_class(self) -> None:
        self._at += 2 if self._peek(1) == "^" else 1
        if self._peek() == "]":
            self._fail("a character class is empty")  # llama.cpp reads it as the empty string, even [^]
        while self._peek() != "]":
            self._take_char()
            if self._peek() == "-" and self._peek(1) != "]":
                self._at += 1
                self._take_char()
        self._at += 1

    def _take_token(self) -> None:
        """<[id]>, <text of one token>, either negated with "!". llama.cpp looks the token up; here only the form matters."""
        self._at += self._peek() == "!"
        self._expect("<")
        if self._peek() == "[":
            self._at += 1
            if int(self._take(_DIGITS, "a token id")[:11]) >= 2**31:
                self._fail("a token id is too large")
            self._expect("]>")
            return
        end = self._text.find(">", self._at)
        if end < 0:
            self._fail("expected '>'")
        self._at = end + 1

    def _take_group(self, depth: int) -> _Sequence:
        self._at += 1
        self._skip_space(newlines=True)
        rule = self._new_rule()
        self._bodies[rule] = self._parse_alternates(depth + 1)
        self._expect(")")
        return [rule]

    def _take_bounds(self, *, nested: bool) -> tuple[int, int | None]:
        char = self._peek()
        self._at += 1
        self._skip_space(newlines=nested)
        if char != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        least = self._take_count(nested=nested)
        most: int | None = least
        if self._peek() == ",":
            self._at += 1
            self._skip_space(newlines=nested)
            most = self._take_count(nested=nested) if _DIGITS.match(self._peek()) else None
        self._expect("}")
        self._skip_space(newlines=nested)
        if most is not None and most < least:
            self._fail(f"repetition {{{least},{most}}} has its bounds reversed")
        return least, most

    def _take_count(self, *, nested: bool) -> int:
        count = int(self._take(_DIGITS, "a number of repetitions")[:10])
        if count > MAX_REPETITIONS:
            self._fail(f"more than {MAX_REPETITIONS} repetitions")
        self._skip_space(newlines=nested)
        return count

    def _repeat(self, sequence: _Sequence, last: int, least: int, most: int | None) -> None:
        """Rewrite the item at the end of `sequence`: S{m,n} -> m times S, then S'(n-m) ::= S S'(n-m-1) |; without n, S' ::= S S' |."""
        item = sequence[last:]
        n_optional = 1 if most is None else most - least
        self._count(len(item) * max(least - 1, 0) + (len(item) + 1) * n_optional)
        sequence[last:] = item * least
        rest: int | None = None
        for _ in range(n_optional):
            rule = self._new_rule()
            following = rule if most is None else rest
            self._bodies[rule] = [item if following is None else [*item, following], []]
            rest = rule
        if rest is not None:
            sequence.append(rest)


# -- cost: what llama.cpp would do with the rules at run time


def _check_cost(rules: _Rules) -> None:
    empty = _may_be_empty(rules.bodies)
    corners = [_left_corners(index, body, empty) for index, body in enumerate(rules.bodies)]
    order = _callees_first(rules, corners)
    paths, stacks, skipped = ([0] * len(order) for _ in range(3))
    for rule in order:
        paths[rule] = 1 + sum(paths[ref] for ref in corners[rule])
        stacks[rule] = skipped[rule] = 0
        for sequence in rules.bodies[rule]:
            n_stacks, n_skipped = _expand(rule, sequence, empty, stacks, skipped)
            stacks[rule] += n_stacks
            skipped[rule] += n_skipped
        if paths[rule] > MAX_PATHS or stacks[rule] > MAX_STACKS:
            raise _Malformed(f'rule "{rules.name(rule)}" has too many ways to begin')
        if skipped[rule] > MAX_SKIPPED:
            raise _Malformed(f'rule "{rules.name(rule)}" has more than {MAX_SKIPPED} items in a row that may be empty')


def _expand(rule: int, sequence: _Sequence, empty: list[bool], stacks: list[int], skipped: list[int]) -> tuple[int, int]:
    """How many parser stacks `sequence` expands to before a character is read, and how many optional items that skips.

    Callees are known already. A repetition's reference to itself at its end expands to what is there already and counts nothing.
    """
    n_stacks = n_skipped = 0
    for element in sequence:
        if element == _TERMINAL:
            return n_stacks + 1, n_skipped
        if element != rule:
            n_stacks += stacks[element]
            n_skipped += skipped[element]
        if not empty[element]:
            return n_stacks, n_skipped
        n_skipped += 1
    return n_stacks + 1, n_skipped


def _may_be_empty(bodies: list[_Rule]) -> list[bool]:
    """Which rules derive the empty string, also through others (which llama.cpp's own check misses). Linear in the grammar."""
    empty = [False] * len(bodies)
    users: list[list[tuple[int, int]]] = [[] for _ in bodies]  # rule -> (rule, alternate) that mentions it
    missing: list[list[int]] = []  # per alternate: elements not known to be empty
    found: list[int] = []
    for index, body in enumerate(bodies):
        missing.append([len(sequence) for sequence in body])
        for alternate, sequence in enumerate(body):
            for element in sequence:
                if element != _TERMINAL:
                    users[element].append((index, alternate))
        if 0 in missing[index]:
            empty[index] = True
            found.append(index)
    while found:
        for index, alternate in users[found.pop()]:
            missing[index][alternate] -= 1
            if not missing[index][alternate] and not empty[index]:
                empty[index] = True
                found.append(index)
    return empty


def _left_corners(index: int, body: _Rule, empty: list[bool]) -> list[int]:
    """The rules that `index` may begin with, once per mention. A reference to itself at the very end is harmless: it adds no stack."""
    corners: list[int] = []
    for sequence in body:
        for position, element in enumerate(sequence):
            if element == _TERMINAL:
                break
            if element != index or position < len(sequence) - 1 or position == 0:
                corners.append(element)
            if not empty[element]:
                break
    return corners


def _callees_first(rules: _Rules, corners: list[list[int]]) -> list[int]:
    """Rules in an order in which each follows all that it may begin with. A cycle is left recursion and refused."""
    users: list[list[int]] = [[] for _ in corners]
    open_calls = [len(refs) for refs in corners]
    for index, refs in enumerate(corners):
        for ref in refs:
            users[ref].append(index)
    order = [index for index, count in enumerate(open_calls) if not count]
    for index in order:  # grows while it is walked
        for user in users[index]:
            open_calls[user] -= 1
            if not open_calls[user]:
                order.append(user)
    if len(order) < len(corners):
        cycle = _find_cycle(corners, open_calls)
        name = next((rules.names[index] for index in cycle if rules.names[index]), None) or rules.name(cycle[0])
        raise _Malformed(f'rule "{name}" is left-recursive: it may begin with itself')
    return order


def _find_cycle(corners: list[list[int]], open_calls: list[int]) -> list[int]:
    """A cycle among the rules with open calls; each of them has one to follow, so that walking on must meet itself."""
    walked: dict[int, None] = {}
    node = next(index for index, count in enumerate(open_calls) if count)
    while node not in walked:
        walked[node] = None
        node = next(ref for ref in corners[node] if open_calls[ref])
    path = list(walked)
    return path[path.index(node) :]
