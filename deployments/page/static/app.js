// The page's frame: which view is shown, the API key, shortcuts.

import { apiKey, setApiKey } from "./api.js";
import { ChatView } from "./chat/view.js";
import { ClusterView } from "./cluster/view.js";
import { button, dialog, el, field } from "./dom.js";

const SHORTCUTS = [
  ["g c", "Chat"],
  ["g l", "Cluster"],
  ["n", "New chat"],
  ["/", "Write a message"],
  ["s", "Settings of the chat"],
  ["Esc", "Stop the reply"],
  ["k", "API key"],
  ["?", "This list"],
];

let asking = null; // one question for a key at a time, however many requests were refused

/** Asks for an API key; resolves to whether one was given. */
function askKey() {
  asking ??= dialog("API key", (close) => {
    const input = el("input", { type: "password", autocomplete: "off", value: apiKey(), name: "key" });
    return el(
      "form",
      { method: "dialog", onsubmit: (event) => (event.preventDefault(), close(input.value.trim())) },
      el("h2", {}, "API key"),
      el(
        "p",
        { class: "small" },
        "It is kept until you close this tab, and sent to this server alone. The cluster view needs an admin's key.",
      ),
      field("Key", input),
      el(
        "div",
        { class: "row end" },
        button("Cancel", () => close(null)),
        button("Forget it", () => close("")),
        el("button", { type: "submit", class: "primary" }, "Use it"),
      ),
    );
  }).then((key) => {
    asking = null;
    if (key !== null) setApiKey(key);
    return Boolean(key);
  });
  return asking;
}

const views = {
  chat: new ChatView(document.getElementById("chat-view"), askKey),
  cluster: new ClusterView(document.getElementById("cluster-view"), askKey),
};
let current = "";

function route() {
  const name = location.hash.slice(1) in views ? location.hash.slice(1) : "chat";
  if (name === current) return;
  if (current) views[current].left?.();
  current = name;
  for (const view of Object.keys(views)) document.getElementById(`${view}-view`).hidden = view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = name === "chat" ? "erllama" : "Cluster – erllama";
  views[name].shown();
}

function help() {
  dialog("Keyboard shortcuts", (close) => [
    el("h2", {}, "Keyboard shortcuts"),
    el(
      "dl",
      { class: "keys" },
      SHORTCUTS.map(([keys, what]) => [
        el(
          "dt",
          {},
          keys.split(" ").map((key) => el("kbd", {}, key)),
        ),
        el("dd", {}, what),
      ]),
    ),
    el(
      "div",
      { class: "row end" },
      button("Close", () => close(null)),
    ),
  ]);
}

async function changeKey() {
  if (await askKey()) views[current].shown();
}

let before = ""; // the first key of a pair

function onKey(event) {
  if (event.key === "Escape" && current === "chat" && !document.querySelector("dialog")) views.chat.stop();
  const typing = event.target.closest("input, textarea, select, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = before === "g" ? `g ${event.key}` : event.key;
  before = event.key;
  const action = {
    "g c": () => (location.hash = "chat"),
    "g l": () => (location.hash = "cluster"),
    n: () => ((location.hash = "chat"), views.chat.create()),
    "/": () => ((location.hash = "chat"), views.chat.composer.input.focus()),
    s: () => current === "chat" && views.chat.togglePanel(),
    k: changeKey,
    "?": help,
  }[keys];
  if (!action) return;
  event.preventDefault();
  action();
}

addEventListener("hashchange", route);
addEventListener("keydown", onKey);
document.getElementById("help-button").addEventListener("click", help);
document.getElementById("key-button").addEventListener("click", changeKey);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment names the view
  document.getElementById("main").focus();
});
route();
