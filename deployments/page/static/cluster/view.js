// The live view of the cluster: asks for a snapshot every two seconds while it is shown, and draws it.

import { json, optionalJson } from "../api.js";
import { button, el, redraw } from "../dom.js";
import { bytes, count, seconds } from "../format.js";
import { chart } from "./chart.js";
import { PrefixPanel } from "./prefixes.js";
import { RequestPanel } from "./requests.js";
import { Samples, series } from "./samples.js";
import { counters, evictions, hub, models, nodes, tiles } from "./tables.js";

const POLL_MS = 2000;
const SLOW_MS = 10_000; // what costs the server more: prefixes, the hub

export class ClusterView {
  /** `askKey()` asks for an API key and resolves to whether one was given. */
  constructor(root, askKey) {
    this.askKey = askKey;
    this.samples = new Samples();
    this.timer = null;
    this.slowAt = 0;
    this.status = el("p", { class: "notice", role: "status", hidden: true });
    this.tiles = el("dl", { class: "tiles" });
    this.charts = el("div", { class: "charts" });
    this.tables = el("div", { class: "tables" });
    this.requests = new RequestPanel();
    this.prefixes = new PrefixPanel((error) => this.refused(error));
    this.body = el(
      "div",
      { class: "cluster-body", hidden: true },
      this.tiles,
      this.charts,
      this.tables,
      this.requests.node,
      this.prefixes.node,
    );
    root.append(el("div", { class: "cluster" }, this.status, this.body));
  }

  shown() {
    this.visible = true;
    this.slowAt = 0;
    this.poll();
  }

  left() {
    this.visible = false;
    clearTimeout(this.timer);
  }

  async poll() {
    clearTimeout(this.timer);
    if (document.visibilityState === "visible") await this.ask();
    if (this.visible) this.timer = setTimeout(() => this.poll(), POLL_MS);
  }

  async ask() {
    try {
      const snapshot = await json("erllama/v1/cluster");
      this.samples.add(snapshot);
      this.draw(snapshot);
      this.tell(
        (snapshot.unanswered || []).length ? [`Not all parts answered: ${snapshot.unanswered.join("; ")}`] : [],
      );
      await this.slowly(snapshot);
    } catch (error) {
      this.refused(error);
    }
  }

  async slowly(snapshot) {
    this.prefixes.offer((snapshot.models || []).filter((model) => (model.replicas || []).length).map(({ id }) => id));
    if (performance.now() < this.slowAt) return;
    this.slowAt = performance.now() + SLOW_MS;
    this.hub = await optionalJson("erllama/v1/hub");
    await this.requests.refresh();
    await this.prefixes.refresh();
  }

  refused(error) {
    if (error.wantsKey) {
      this.tell([
        error.status === 403 ? "The cluster is shown to an admin's key. " : "The cluster needs an API key. ",
        button("Enter a key", () => this.changeKey()),
      ]);
      this.left(); // no more is asked until there is one
    } else if (error.status === 404) this.tell(["This server tells nothing of its cluster."]);
    else this.tell([`${error.message} Asked again every ${POLL_MS / 1000} s.`]);
  }

  async changeKey() {
    if (await this.askKey()) this.shown();
  }

  tell(parts) {
    const text = parts.map((part) => part.textContent ?? part).join("");
    if (text === this.status.textContent) return; // said once, not at each poll
    this.status.replaceChildren(...parts);
    this.status.hidden = !parts.length;
  }

  draw(snapshot) {
    this.body.hidden = false;
    redraw(this.tiles, tiles(snapshot));
    redraw(this.charts, this.chartsOf());
    const { saves, hits, evicted } = counters(snapshot);
    redraw(this.tables, [
      card("Models and replicas", models(snapshot), "wide-card"),
      card("Nodes", nodes(snapshot), "wide-card"),
      card("Requests by hit", hits),
      card("Saves by reason", saves),
      card("Evictions by the stores", evicted),
      card("Evictions by the scheduler", evictions(snapshot), "wide-card"),
      card("Hub", hub(this.hub)),
    ]);
  }

  chartsOf() {
    const { points } = this.samples;
    const times = points.map(({ time }) => time);
    const sum = (one) => count(one.values.reduce((a, b) => a + b, 0));
    const budget = points.at(-1).tiers;
    const ofBudget = ({ name, values }) =>
      `${bytes(values.at(-1))}${budget[name]?.budget ? ` of ${bytes(budget[name].budget)}` : ""}`;
    let saved = 0;
    const savings = [{ name: "prefill", values: points.map(({ deltas }) => (saved += deltas.prefill_seconds_saved)) }];
    return [
      chart({
        title: "KV in the tiers",
        kind: "area",
        format: bytes,
        times,
        told: ofBudget,
        series: series(points, ({ tiers }) =>
          Object.fromEntries(Object.entries(tiers).map(([name, tier]) => [name, tier.bytes])),
        ),
      }),
      chart({
        title: "Memory used",
        kind: "line",
        format: bytes,
        times,
        series: series(points, ({ memory }) => memory, null),
      }),
      chart({
        title: "Requests by hit",
        kind: "bars",
        format: count,
        times,
        told: sum,
        series: series(points, ({ deltas }) => deltas.hits),
      }),
      chart({
        title: "Prompt tokens",
        kind: "bars",
        format: count,
        times,
        told: sum,
        series: series(points, ({ deltas }) => ({
          cached: deltas.cached_tokens,
          computed: deltas.prompt_tokens - deltas.cached_tokens,
        })),
      }),
      chart({ title: "Time saved since opened", kind: "line", format: seconds, times, series: savings }),
      chart({
        title: "Saves by reason",
        kind: "bars",
        format: count,
        times,
        told: sum,
        series: series(points, ({ deltas }) => deltas.saves),
      }),
    ];
  }
}

function card(title, content, kind = "") {
  return (
    content &&
    el("section", { class: `card ${kind}`, "aria-label": title }, el("header", {}, el("h2", {}, title)), content)
  );
}
