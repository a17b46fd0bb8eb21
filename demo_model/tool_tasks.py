"""Tasks for the model to solve with a tool: the tools on offer, the request, the right call, its
result, the answer.

Tool names are a verb and a topic, so the verb must be copied from the system text and the topic
from the request. Tools offered together look like one API: the same verb, the same parameter name
for places (things, persons), and topics that are real words. A model this small does not reliably
pick among tools that differ in more than that (`mixed`); only a tool that is alone may have a
made-up topic or parameter.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from demo_model import entities, phrases
from demo_model.entities import Side, words

Tool = dict[str, Any]

_VERBS = words("get get get get_current find check lookup fetch show read")
_PLACE_VALUES: dict[str, list[str]] = {
    "weather": [
        "sunny",
        "rainy",
        "cloudy",
        "windy",
        "snowy",
        "stormy",
        "foggy",
        "sunny, 21 degrees",
        "rainy, 12 degrees",
    ],
    "temperature": ["12 degrees", "18 degrees", "21 degrees", "25 degrees", "5 degrees", "30 degrees"],
    "time": ["10:30", "14:15", "08:45", "17:20", "21:05", "12:50"],
    "population": ["40000", "120000", "350000", "800000", "9000"],
    "hotel": ["Golden Lion", "Blue Lake", "Old Mill", "Green Garden"],
    "traffic": words("heavy light quiet slow"),
    "forecast": words("sunny rainy cloudy windy snowy"),
    "mayor": entities.PEOPLE,
}
_ITEM_VALUES: dict[str, list[str]] = {
    "price": ["25 euros", "12 euros", "7 dollars", "140 dollars", "99 euros"],
    "colour": entities.COLOURS,
    "weight": ["3 kilos", "12 kilos", "40 kilos", "250 grams"],
    "owner": entities.PEOPLE,
    "status": words("open closed ready late lost"),
    "size": words("small large medium tiny"),
    "stock": ["12", "40", "7", "156", "0"],
}
_PERSON_VALUES: dict[str, list[str]] = {
    "age": ["21", "34", "45", "56", "67", "78"],
    "phone": ["2314", "8873", "4521", "9906", "1278"],
    "job": entities.JOBS,
    "birthday": entities.DAYS,
    "office": entities.ROOMS,
    "salary": ["2000 euros", "3500 euros", "4100 dollars"],
    "address": ["12 Mill Road", "4 Lake Street", "7 Garden Road"],
    "score": ["12", "99", "41", "7"],
}
_FAMILIES = {"place": _PLACE_VALUES, "item": _ITEM_VALUES, "person": _PERSON_VALUES}
_PARAMETERS = {
    "place": words("city city location location place town"),
    "item": words("item product name object article"),
    "person": words("name person user employee customer"),
}
# Ways to ask that say the topic in other words than "the topic of ...".
_IDIOMS = {
    "weather": ("What is the weather like in {}?", "How is the weather in {}?", "What's the weather like in {} today?",
                "What's the weather in {}?", "Weather in {}?"),
    "time": ("What time is it in {}?", "What time is it in {} now?"),
    "price": ("How much is the {}?", "What does the {} cost?"),
    "age": ("How old is {}?",),
    "population": ("How many people live in {}?",),
}  # fmt: skip
# Listed but never filled: the user does not speak of them and they are not required.
_OPTIONAL_PARAMETERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]}),
    ("language", {"type": "string"}),
    ("limit", {"type": "integer"}),
)


@dataclass(frozen=True, slots=True)
class ToolTask:
    request: str
    name: str
    arguments: dict[str, Any]
    result: str
    answer: str
    is_sum: bool = False

    @property
    def call_message(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


@dataclass(frozen=True, slots=True)
class _Style:
    """How much a tool says about itself; brief tools fit into short rows."""

    described: bool
    parameters_described: bool
    optional: bool
    required: bool
    alone: bool
    name_form: str
    parameters: dict[str, str]

    @classmethod
    def draw(cls, rng: random.Random, brief: bool, alone: bool) -> _Style:
        optional = not brief and rng.random() < 0.15
        return cls(
            described=rng.random() < (0.4 if brief else 0.8),
            parameters_described=not brief and rng.random() < 0.25,
            optional=optional,
            required=optional or rng.random() < 0.7,
            alone=alone,
            name_form=_name_form(rng),
            parameters={family: _parameter(rng, family, alone) for family in _FAMILIES},
        )


def _name_form(rng: random.Random) -> str:
    return rng.choice([f"{rng.choice(_VERBS)}_{{}}"] * 4 + ["{}_lookup", "{}"])


def _parameter(rng: random.Random, family: str, alone: bool) -> str:
    return entities.made_up_word(rng, Side.TRAIN) if alone and rng.random() < 0.2 else rng.choice(_PARAMETERS[family])


def _tool(rng: random.Random, style: _Style, name: str, description: str, parameters: dict[str, str]) -> Tool:
    function: dict[str, Any] = {"name": name}
    if style.described:
        function["description"] = description
    properties: dict[str, dict[str, Any]] = {}
    for key, kind in parameters.items():
        properties[key] = {"type": kind}
        if style.parameters_described:
            properties[key]["description"] = rng.choice(
                [f"The {key}", f"the {key}", f"The {key}, e.g. {rng.choice(entities.CITIES)}"]
            )
    if style.optional:
        key, schema = rng.choice(_OPTIONAL_PARAMETERS)
        properties[key] = dict(schema)
    function["parameters"] = {"type": "object", "properties": properties}
    if style.required:
        function["parameters"]["required"] = list(parameters)
    return {"type": "function", "function": function}


def _draw_topic(rng: random.Random, side: Side, taken: set[str], alone: bool) -> tuple[str, str, list[str]]:
    """(topic, family, result values); made-up topics keep the name a thing to copy, not to know."""
    while True:
        if alone and rng.random() < 0.25:
            topic, family = entities.made_up_word(rng, side), rng.choice(list(_FAMILIES))
            values = [entities.made_up_name(rng, side), entities.number(rng, side, n_digits=3)]
        else:
            family = rng.choice(["place", "place", "item", "person"])
            topic = rng.choice(list(_FAMILIES[family]))
            values = _FAMILIES[family][topic]
        if topic not in taken:
            taken.add(topic)
            return topic, family, values


def _argument(rng: random.Random, side: Side, family: str) -> str:
    if family == "item":
        real = side is Side.TRAIN and rng.random() < 0.4
        return rng.choice(entities.FRUITS + entities.OBJECTS) if real else entities.made_up_name(rng, side)
    return entities.name_or_real(rng, side, entities.CITIES if family == "place" else entities.PEOPLE)


def _result(rng: random.Random, key: str, value: str, extra: dict[str, str]) -> str:
    """What a tool sends back: JSON with the value last or alone, or the bare value."""
    number = int(value) if value.isdigit() and rng.random() < 0.5 else value
    forms = [_json({key: number}), _json({key: number}), _json({**extra, key: number}), value]
    return rng.choice(forms)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _weather_report(rng: random.Random, extra: dict[str, str]) -> tuple[str, str]:
    """(result, value): the two figures that weather services send, in either order."""
    sky, degrees = rng.choice(_PLACE_VALUES["weather"][:7]), rng.randrange(-9, 40)
    report: dict[str, Any] = {rng.choice(["condition", "conditions", "weather", "description"]): sky}
    temperature = {rng.choice(["temperature", "temp", "degrees"]): degrees}
    report = report | temperature if rng.random() < 0.5 else temperature | report
    return _json(extra | report if rng.random() < 0.3 else report), f"{sky}, {degrees} degrees"


def _lookup(rng: random.Random, side: Side, taken: set[str], style: _Style, mixed: bool) -> tuple[Tool, ToolTask]:
    topic, family, values = _draw_topic(rng, side, taken, style.alone)
    preposition = "in" if family == "place" else "of"
    parameter, name_form = style.parameters[family], style.name_form
    if mixed:
        parameter, name_form = _parameter(rng, family, style.alone), _name_form(rng)
    descriptions = [
        f"Get the {topic} {preposition} a {parameter}.",
        f"Get the current {topic} {preposition} a given {parameter}",
        f"Returns the {topic}.",
        f"Find the {topic} {preposition} a {family}",
    ]
    tool = _tool(rng, style, name_form.format(topic), rng.choice(descriptions), {parameter: "string"})
    argument, value = _argument(rng, side, family), rng.choice(values)
    asked = f"the {topic} {preposition} {argument}"
    forms = ["What is {}?", "What is {}?", "What's {}?", "Tell me {}.", "Find {}.", "Please tell me {}."]
    request = rng.choice(forms).format(asked)
    if topic in _IDIOMS and rng.random() < 0.5:
        request = rng.choice(_IDIOMS[topic]).format(argument)
    result = _result(rng, rng.choice([topic, topic, "result", "value"]), value, {parameter: argument})
    if topic == "weather" and rng.random() < 0.4:
        result, value = _weather_report(rng, {parameter: argument})
    answer = f"The {topic} {preposition} {argument} is {value}."
    return tool, ToolTask(request, tool["function"]["name"], {parameter: argument}, result, answer)


def _calculation(rng: random.Random, side: Side, taken: set[str], style: _Style, mixed: bool) -> tuple[Tool, ToolTask]:
    kind, sign, word = rng.choice([("add", "+", "plus"), ("multiply", "*", "times"), ("subtract", "-", "minus")])
    taken.add(kind)
    limit = rng.choice([10, 100, 1000])
    left, right = rng.randrange(1, limit), rng.randrange(1, limit)
    value = {"+": left + right, "*": left * right, "-": left - right}[sign]
    request = rng.choice(
        [f"What is {left} {word} {right}?", f"What is {left} {sign} {right}?", f"{left} {sign} {right}"]
    )
    if rng.random() < 0.3:
        name = rng.choice(["calculator", "calculate", "compute"])
        tool = _tool(
            rng, style, name, rng.choice(["Calculate an expression.", "A calculator"]), {"expression": "string"}
        )
        arguments: dict[str, Any] = {"expression": f"{left} {sign} {right}"}
    else:
        name = rng.choice([kind, f"{kind}_numbers"])
        first, second = rng.choice([("a", "b"), ("x", "y"), ("left", "right"), ("first", "second")])
        number = rng.choice(["number", "integer"])
        description = rng.choice([f"{kind.capitalize()} two numbers.", f"{kind.capitalize()}s two numbers"])
        tool = _tool(rng, style, name, description, {first: number, second: number})
        arguments = {first: left, second: right}
    result = rng.choice([str(value), _json({"result": value})])
    return tool, ToolTask(request, name, arguments, result, f"{left} {sign} {right} = {value}", is_sum=True)


def _search(rng: random.Random, side: Side, taken: set[str], style: _Style, mixed: bool) -> tuple[Tool, ToolTask]:
    taken.add("search")
    parameter = rng.choice(["query", "query", "text", "q"])
    name = rng.choice(["search", "search", "web_search", "search_web", "search_documents"])
    tool = _tool(rng, style, name, rng.choice(["Search the web.", "Search for a text"]), {parameter: "string"})
    query = " ".join(rng.sample(phrases.COMMON_WORDS, rng.randrange(1, 3)))
    query = rng.choice([query, entities.made_up_name(rng, side), f"{entities.made_up_name(rng, side)} {query}"])
    found = " ".join([entities.made_up_name(rng, side), *rng.sample(phrases.COMMON_WORDS, rng.randrange(1, 5))])
    request = rng.choice(["Search for {}.", "Please search for {}.", "Search the web for {}."]).format(query)
    result = _result(rng, rng.choice(["result", "text", "results"]), found, {parameter: query})
    return tool, ToolTask(request, name, {parameter: query}, result, f"I found this: {found}")


def draw_tool_tasks(
    rng: random.Random, side: Side, *, n_tools: int, brief: bool = False, mixed: bool = False
) -> tuple[tuple[Tool, ...], list[ToolTask]]:
    """The tools to offer, and one task for each of them in random order.

    `brief` leaves most descriptions out, `mixed` lets every tool have a verb and parameter names of
    its own.
    """
    taken: set[str] = set()
    style = _Style.draw(rng, brief, n_tools == 1)
    rare = rng.random()
    first = _calculation if rare < 0.12 else _search if rare < 0.2 else _lookup
    drawn = [make(rng, side, taken, style, mixed) for make in [first] + [_lookup] * (n_tools - 1)]
    rng.shuffle(drawn)
    tools = tuple(tool for tool, _ in drawn)
    if side is Side.TRAIN and rng.random() < 0.1:
        # Renderers that keep jinja's own tojson sort the keys of a tool.
        tools = tuple(_sorted_keys(tool) for tool in tools)
    tasks = [task for _, task in drawn]
    rng.shuffle(tasks)
    return tools, tasks


def _sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted_keys(value[key]) for key in sorted(value)}
    return value
