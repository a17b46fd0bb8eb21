// One message as it is shown: text, files, reasoning and calls folded, what it cost, what can be done with it.

import { button, copyButton, el, redraw } from "../dom.js";
import { count, seconds, share } from "../format.js";
import { showWhy } from "../why.js";
import { render } from "./markdown.js";

const WHO = { user: "You", assistant: "Assistant", tool: "Tool result" };
const ENDS = {
  stopped: "Stopped.",
  lost: "The connection was lost before the reply had ended.",
};

/** The view of one message. `actions` are called with the message; `update` shows what it is now. */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.text = el("div", { class: "text" });
    this.reasoning = el("div", { class: "text" });
    this.thoughts = folded("Reasoning", this.reasoning);
    this.calls = el("div", { class: "calls" });
    this.note = el("div", { class: "note" });
    this.foot = el("div", { class: "foot" });
    this.head = el("div", { class: "who" });
    this.node = el(
      "li",
      { class: `message ${message.role}`, "data-id": message.id },
      this.head,
      this.thoughts,
      this.text,
      this.calls,
      this.note,
      this.foot,
    );
    this.update();
  }

  update() {
    const { message } = this;
    const streaming = message.state === "streaming";
    this.node.setAttribute("aria-busy", String(streaming));
    this.node.dataset.state = message.state;
    this.head.textContent = message.role === "assistant" && message.model ? message.model : WHO[message.role];
    this.thoughts.hidden = !message.reasoning;
    if (message.reasoning) render(this.reasoning, message.reasoning);
    this.drawText();
    this.drawCalls();
    redraw(this.note, noteOf(message, this.actions));
    redraw(this.foot, streaming ? [] : [statsOf(message), this.buttons()]);
  }

  drawText() {
    const { message } = this;
    if (message.role === "assistant") render(this.text, message.content);
    else redraw(this.text, el("div", { class: "plain" }, message.content), (message.attachments || []).map(fileOf));
  }

  drawCalls() {
    const calls = this.message.calls || [];
    const known = this.calls.children;
    calls.forEach((call, index) => {
      const view = known[index] || this.calls.appendChild(callView());
      view.querySelector("summary").textContent = `Calls ${call.name || "…"}`;
      view.querySelector("code").textContent = pretty(call.arguments);
    });
    while (known.length > calls.length) this.calls.lastChild.remove();
  }

  buttons() {
    const { message, actions } = this;
    const { all, index } = actions.siblings(message);
    const sideways =
      all.length > 1 &&
      el(
        "span",
        { class: "siblings", role: "group", "aria-label": "Branches" },
        button("‹", () => actions.step(message, -1), {
          "aria-label": "Previous branch",
          disabled: index === 0,
          "data-focus": "before",
        }),
        el("span", { "aria-label": `Branch ${index + 1} of ${all.length}` }, `${index + 1}/${all.length}`),
        button("›", () => actions.step(message, 1), {
          "aria-label": "Next branch",
          disabled: index === all.length - 1,
          "data-focus": "after",
        }),
      );
    const own = {
      user: () => button("Edit", () => actions.edit(message), { "data-focus": "edit" }),
      assistant: () => button("Regenerate", () => actions.regenerate(message), { "data-focus": "again" }),
      tool: () => null,
    }[message.role]();
    const copy = message.content && copyButton(() => message.content, { "data-focus": "copy" });
    const why = message.requestId && message.stats?.prompt && whyButton(message.requestId);
    return el("span", { class: "actions" }, sideways, why, own, copy);
  }
}

const whyButton = (id) =>
  button("Why", () => showWhy(id), { title: "Why tokens of the prompt were computed", "data-focus": "why" });

function folded(label, content) {
  return el("details", { class: "folded" }, el("summary", {}, label), content);
}

const callView = () => folded("", el("pre", { tabindex: "0" }, el("code")));

const fileOf = ({ name, text }) =>
  folded(`${name} (${count(text.length)} characters)`, el("pre", { tabindex: "0" }, text));

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // it is still being written
  }
}

/** What is to be said of a reply beside its text. */
function noteOf(message, actions) {
  if (message.state === "streaming") return progressOf(message);
  if (message.role !== "assistant") return null;
  if (message.state === "failed") {
    return el(
      "p",
      { class: "error", role: "alert" },
      message.error.text,
      " ",
      button("Try again", () => actions.retry(message)),
    );
  }
  if (message.state in ENDS) {
    const again = button("Go on", () => actions.goOn(message), { "data-focus": "on" });
    const isLost = message.state === "lost";
    return el(
      "p",
      isLost ? { class: "error", role: "alert" } : {},
      ENDS[message.state],
      " ",
      !message.calls?.length && again,
    );
  }
  const unanswered = message.calls?.length && actions.isLast(message);
  if (unanswered)
    return el(
      "p",
      {},
      button("Give the results of the calls", () => actions.answerCalls(message)),
    );
  return message.finish === "length"
    ? el(
        "p",
        {},
        "The reply ended at its limit of tokens. ",
        button("Go on", () => actions.goOn(message)),
      )
    : null;
}

function progressOf({ progress, content, reasoning }) {
  if (content || reasoning) return null;
  if (!progress) return el("p", { class: "waiting" }, "Waiting for the model…");
  const done = `${count(progress.processed)} of ${count(progress.total)} tokens`;
  return el(
    "p",
    { class: "waiting" },
    `Reading the prompt: ${done}, ${count(progress.cache)} from the cache.`,
    el("progress", { max: progress.total, value: progress.processed, "aria-label": "Prompt" }),
  );
}

/** One line: cached and computed tokens of the prompt, time to the first token, pace. */
function statsOf({ stats }) {
  if (!stats?.prompt) return el("span", { class: "stats" });
  const { prompt, cached, completion, ttft, perSecond, tier } = stats;
  const bar = el("span", { class: "bar-cached", "aria-hidden": "true" }, el("span", {}));
  bar.firstChild.style.width = `${(100 * cached) / prompt}%`;
  const items = [
    el(
      "span",
      { class: "cached", title: `${share(cached, prompt)} of the prompt was taken over${tier ? ` from ${tier}` : ""}` },
      bar,
      `${count(cached)} cached`,
    ),
    el("span", {}, `${count(prompt - cached)} computed`),
    el("span", {}, `${count(completion)} generated`),
    ttft !== undefined && el("span", { title: "Time to the first token" }, `${seconds(ttft)} to first token`),
    perSecond > 0 && el("span", {}, `${perSecond.toFixed(1)} tok/s`),
  ];
  return el("span", { class: "stats" }, items);
}
