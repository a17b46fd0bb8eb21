// The stored prefixes of one model as a tree, with what can be done to each.

import { json, send } from "../api.js";
import { announce, button, dialog, download, el, redraw } from "../dom.js";
import { ago, bytes, count, plural } from "../format.js";
import { fold, sumOf } from "./prefix_tree.js";

const LIMIT = 200;
const ORDERS = [
  ["hits", "most used"],
  ["recent", "used last"],
  ["bytes", "largest"],
  ["tokens", "longest"],
];
const URL = "erllama/v1/prefixes";

export class PrefixPanel {
  /** `failed(error)` takes what was refused. */
  constructor(failed) {
    this.failed = failed;
    this.folds = new Map(); // beginning -> whether the user has unfolded it
    this.model = el("select", { "aria-label": "Model of the prefixes", onchange: () => this.refresh() });
    this.order = el(
      "select",
      { "aria-label": "Order of the prefixes", onchange: () => this.refresh() },
      ORDERS.map(([value, label]) => el("option", { value }, label)),
    );
    this.note = el("p", { class: "small", role: "status" });
    this.tree = el("ul", { class: "tree" });
    this.node = el(
      "section",
      { class: "card wide-card", "aria-label": "Stored prefixes" },
      el(
        "header",
        {},
        el("h2", {}, "Stored prefixes"),
        this.model,
        this.order,
        el("span", { class: "grow" }),
        button("Refresh", () => this.refresh(), { class: "quiet" }),
      ),
      this.note,
      this.tree,
    );
  }

  /** Offers these models; those without a replica have nothing to tell. */
  offer(ids) {
    const now = ids.join("\n");
    if (now === this.offered) return;
    this.offered = now;
    const kept = this.model.value;
    this.model.replaceChildren(...ids.map((id) => el("option", { value: id }, id)));
    if (ids.includes(kept)) this.model.value = kept;
    this.refresh();
  }

  async refresh() {
    const model = this.model.value;
    if (!model) {
      this.note.textContent = "No model is loaded.";
      this.tree.replaceChildren();
      return;
    }
    try {
      const { data } = await json(`${URL}?${new URLSearchParams({ model, order: this.order.value, limit: LIMIT })}`);
      this.draw(data, model);
    } catch (error) {
      this.note.textContent = error.message;
      if (error.wantsKey) this.failed(error);
    }
  }

  draw(prefixes, model) {
    this.now = Date.now() / 1000;
    const more = prefixes.length >= LIMIT ? ` The first ${LIMIT} are shown.` : "";
    this.note.textContent = prefixes.length
      ? `${plural(prefixes.length, "branch").replace(/hs$/, "hes")}.${more}`
      : "Nothing is stored yet.";
    redraw(
      this.tree,
      fold(prefixes).map((node) => this.nodeOf(node, model, "")),
    );
  }

  nodeOf(node, model, above) {
    const path = above + node.text;
    if (node.prefix) return this.leafOf(node, model);
    const { n, bytes: size, hits } = sumOf(node);
    const details = el(
      "details",
      {
        open: this.folds.get(path) ?? above === "",
        ontoggle: () => this.folds.set(path, details.open),
      },
      el(
        "summary",
        { "data-focus": path },
        el("code", {}, shown(node.text)),
        el("span", { class: "small" }, `${n} branches · ${bytes(size)} · ${plural(hits, "hit")}`),
      ),
      el(
        "ul",
        {},
        node.children.map((child) => this.nodeOf(child, model, path)),
      ),
    );
    return el("li", {}, details);
  }

  leafOf({ text, prefix }, model) {
    const { key, tokens, bytes: size, hits, last_used: used, tiers = [], pins = [] } = prefix;
    const facts = [
      `${count(tokens)} tokens`,
      bytes(size),
      plural(hits, "hit"),
      tiers.join(", "),
      used ? ago(used, this.now) : "",
    ].filter(Boolean);
    return el(
      "li",
      { class: "leaf", "data-key": key },
      el(
        "div",
        {},
        el("code", {}, text ? shown(text) : "…"),
        pins.map((name) =>
          el("span", { class: "badge", title: "Pinned: it is not evicted" }, `pin ${name.slice(0, 16)}`),
        ),
      ),
      el(
        "div",
        { class: "foot" },
        el("span", {}, facts.join(" · ")),
        el(
          "span",
          { class: "actions" },
          pins.length
            ? button("Unpin", () => this.unpin(prefix, model), { "data-focus": `pin ${key}` })
            : button("Pin", () => this.pin(key, model), { "data-focus": `pin ${key}` }),
          button("Evict", () => this.evict(prefix, model), { "data-focus": `evict ${key}`, disabled: pins.length > 0 }),
          button("Export", () => this.export(key, model), { "data-focus": `export ${key}` }),
        ),
      ),
    );
  }

  async attempt(act, done) {
    try {
      await act();
      if (done) announce(done);
      await this.refresh();
    } catch (error) {
      this.note.textContent = error.message;
      if (error.wantsKey) this.failed(error);
    }
  }

  pin(key, model) {
    return this.attempt(
      () => json(`${URL}/${key}/pin?${new URLSearchParams({ model })}`, { method: "POST", body: {} }),
      "The prefix is pinned.",
    );
  }

  unpin({ key, pins }, model) {
    const each = pins.map((name) =>
      json(`${URL}/${key}/pin?${new URLSearchParams({ model, name })}`, { method: "DELETE" }),
    );
    return this.attempt(() => Promise.all(each), "The pin is gone.");
  }

  async evict({ key, tokens, text }, model) {
    const sure = await dialog("Evict prefix", (close) => [
      el("h2", {}, "Evict this prefix?"),
      el("p", {}, el("code", {}, shown(text))),
      el("p", { class: "small" }, `The next prompt that begins so computes up to ${count(tokens)} tokens again.`),
      el(
        "div",
        { class: "row end" },
        button("Cancel", () => close(false)),
        button("Evict", () => close(true), { class: "primary" }),
      ),
    ]);
    if (sure)
      await this.attempt(
        () => json(`${URL}/${key}?${new URLSearchParams({ model })}`, { method: "DELETE" }),
        "The prefix was evicted.",
      );
  }

  export(key, model) {
    return this.attempt(async () => {
      const reply = await send(`${URL}/${key}/export?${new URLSearchParams({ model })}`);
      download(`${key.slice(0, 16)}.kv`, "application/octet-stream", await reply.blob());
    });
  }
}

const shown = (text) => text.replace(/\n/g, "↵");
