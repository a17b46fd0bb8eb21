// Why tokens of a prompt were computed: what the server tells of one request.

import { json } from "./api.js";
import { button, dialog, el } from "./dom.js";
import { count, seconds } from "./format.js";

const CAUSES = {
  first_seen: "Nothing of this conversation was known before.",
  extended: "It continues what was known; what is new was computed.",
  date_or_id: "A date, a number or an id in it changes from request to request.",
  system_changed: "The system text changed.",
  tools_changed: "The offered tools changed.",
  template_changed: "What the chat template writes around the messages changed.",
  edited_history: "An earlier message changed, or the conversation branched.",
  evicted: "It was known once, and is stored nowhere any more.",
  other_replica: "Another replica has seen more of it than the one that answered.",
  store_unavailable: "It was stored, and a tier failed, was slow or is left alone.",
  below_threshold: "It is too short to be stored, or computing it was cheaper than reading it.",
};

/** One sentence for a cause; `noise:<rule>` names a rule that would have helped. */
export function causeText(cause) {
  if (cause?.startsWith("noise:"))
    return `Client noise: the rule ${cause.slice(6)} is off and would have made both sides equal.`;
  return CAUSES[cause] || cause || "The server does not say.";
}

/** Asks the server about a request, and shows what it says. */
export async function showWhy(requestId) {
  let content;
  try {
    content = whyOf(await json(`erllama/v1/requests/${encodeURIComponent(requestId)}/why`));
  } catch (error) {
    content = el(
      "p",
      { class: "error" },
      error.status === 404 ? "Nothing is remembered of this request." : error.message,
    );
  }
  await dialog("Why it was computed", (close) => [
    el("h2", {}, "Why it was computed"),
    content,
    el("p", { class: "small" }, "Request ", el("code", {}, requestId)),
    el(
      "div",
      { class: "row end" },
      button("Close", () => close(null)),
    ),
  ]);
}

function whyOf(told) {
  const { prompt_tokens: prompt, cached_tokens: cached, cost_ms: cost, position, tier, known_in: knownIn } = told;
  const facts = [
    `${count(cached)} of ${count(prompt)} tokens cached${tier ? ` from ${tier}` : ""}`,
    position !== undefined &&
      position !== null &&
      `known up to token ${count(position)}${knownIn ? ` (${knownIn})` : ""}`,
    cost !== undefined && cost !== null && `${seconds(cost / 1000)} to compute the rest`,
  ];
  return [
    el("p", {}, el("b", {}, causeText(told.cause))),
    told.detail && el("p", {}, told.detail),
    el("p", { class: "small" }, facts.filter(Boolean).join(" · ")),
    sides(told),
  ];
}

/** The text on both sides of the place where the prompt left what was known. */
function sides({ before, prompt, stored }) {
  const rows = [
    ["Both begin", before],
    ["This prompt", prompt],
    ["What was known", stored],
  ].filter(([, side]) => side?.text);
  if (!rows.length) return null;
  return el(
    "dl",
    { class: "sides" },
    rows.map(([name, { text }]) => [el("dt", {}, name), el("dd", {}, el("pre", { tabindex: "0" }, text))]),
  );
}
