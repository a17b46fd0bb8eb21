// What the chat asks in dialogs. Each resolves to the answer, or to null when the dialog is left.

import { button, dialog, el, field } from "../dom.js";

const answers = (...buttons) => el("div", { class: "row end" }, buttons);

/** The text that takes the place of `text`. */
export function askEdit(text) {
  const input = el("textarea", { rows: 8, value: text, "aria-label": "Message" });
  return dialog("Edit message", (close) => [
    el("h2", {}, "Edit message"),
    el("p", { class: "small" }, "This makes a branch: what was said before stays, and you can go back to it."),
    input,
    answers(
      button("Cancel", () => close(null)),
      button("Send", () => close(input.value), { class: "primary" }),
    ),
  ]);
}

/** What each of `calls` gives, as texts: here the user is the tool. */
export function askResults(calls) {
  const inputs = calls.map(() => el("textarea", { rows: 3 }));
  return dialog("Results of the calls", (close) => [
    el("h2", {}, "Results of the calls"),
    calls.map((call, index) => field(`${call.name}(${call.arguments.slice(0, 200)})`, inputs[index])),
    answers(
      button("Cancel", () => close(null)),
      button("Send", () => close(inputs.map((input) => input.value)), { class: "primary" }),
    ),
  ]);
}

/** "md" or "json". */
export function askFormat() {
  return dialog("Export", (close) => [
    el("h2", {}, "Export this conversation"),
    el("p", { class: "small" }, "Markdown has the branch that is shown, JSON all of them."),
    answers(
      button("Cancel", () => close(null)),
      button("Markdown", () => close("md")),
      button("JSON", () => close("json")),
    ),
  ]);
}
