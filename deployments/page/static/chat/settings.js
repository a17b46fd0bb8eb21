// The form of what a conversation's requests say: system text, sampling, tools.

import { el, field } from "../dom.js";

const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: "any", placeholder: "0.8" }],
  ["top_p", "Top p", { min: 0, max: 1, step: "any", placeholder: "0.95" }],
  ["max_tokens", "Max tokens", { min: 1, step: 1, placeholder: "until it ends" }],
  ["seed", "Seed", { min: 0, step: 1, placeholder: "random" }],
];

/** A form that changes `settings` in place, and calls `changed` when it has. Empty fields are not sent. */
export function settingsForm(settings, changed) {
  const system = el("textarea", {
    rows: 4,
    value: settings.system || "",
    "data-setting": "system",
    oninput: () => set("system", system.value),
  });
  const tools = el("textarea", {
    rows: 4,
    class: "code-input",
    spellcheck: "false",
    value: settings.tools || "",
    placeholder: '[{"type": "function", "function": {"name": …}}]',
    "data-setting": "tools",
    "aria-describedby": "tools-note",
    oninput: () => setTools(tools),
  });
  const note = el("p", { class: "small", id: "tools-note", role: "status" });

  function set(name, value) {
    if (value === "" || value === undefined) delete settings[name];
    else settings[name] = value;
    changed();
  }

  function setTools(input) {
    const problem = toolsProblem(input.value);
    input.setAttribute("aria-invalid", String(Boolean(problem)));
    note.textContent = problem;
    if (!problem) set("tools", input.value.trim());
  }

  function number([name, label, attributes]) {
    const input = el("input", {
      type: "number",
      ...attributes,
      "data-setting": name,
      value: settings[name] ?? "",
      oninput: () => input.validity.valid && set(name, input.value === "" ? "" : input.valueAsNumber),
    });
    return field(label, input);
  }

  return el(
    "form",
    { class: "settings", onsubmit: (event) => event.preventDefault() },
    field("System text", system),
    el("div", { class: "numbers" }, NUMBERS.map(number)),
    field("Tools (JSON)", tools),
    note,
  );
}

/** Why a text is no list of tools, "" if it is one or empty. */
function toolsProblem(text) {
  if (!text.trim()) return "";
  try {
    const tools = JSON.parse(text);
    const good = Array.isArray(tools) && tools.every((tool) => tool?.function?.name);
    return good ? "" : "This is no list of functions, so it is not sent.";
  } catch {
    return "This is no JSON yet, so it is not sent.";
  }
}
