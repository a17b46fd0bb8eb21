// What a snapshot of the cluster says, as tables and tiles. Each function gives nodes for what is known.

import { el } from "../dom.js";
import { ago, bytes, count, plural, seconds, share } from "../format.js";
import { replicasOf, totalsOf } from "./samples.js";

const badge = (text, state = text) => el("span", { class: "badge", "data-state": state }, text);
const numeric = (text) => el("td", { class: "number" }, text);

function table(caption, heads, rows) {
  if (!rows.length) return null;
  return el(
    "div",
    { class: "wide" },
    el(
      "table",
      { class: "data" },
      el("caption", { class: "unseen" }, caption),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          heads.map((head) =>
            el("th", { scope: "col", class: head.startsWith("#") ? "number" : "" }, head.replace("#", "")),
          ),
        ),
      ),
      el("tbody", {}, rows),
    ),
  );
}

export function tiles(snapshot) {
  const replicas = replicasOf(snapshot);
  const total = totalsOf(snapshot);
  const sum = (name) => replicas.reduce((all, replica) => all + (replica[name] || 0), 0);
  const evictions = snapshot.scheduler?.evictions ?? total.evictions;
  const pressed = (snapshot.nodes || []).filter(({ pressure }) => pressure && pressure !== "none");
  pressed.sort((a, b) => (b.pressure === "exhausted") - (a.pressure === "exhausted")); // the worst first
  const items = [
    [
      "Prompt tokens cached",
      share(total.cached_tokens, total.prompt_tokens),
      `${count(total.cached_tokens)} of ${count(total.prompt_tokens)}`,
    ],
    ["Time saved", seconds(total.prefill_seconds_saved), "of prefill"],
    ["Running", count(sum("n_running")), `${count(sum("n_queued"))} queued`],
    ["Replicas", count(replicas.length), plural((snapshot.nodes || []).length, "node")],
    [
      "Evictions",
      count(evictions),
      snapshot.scheduler ? `${bytes(snapshot.scheduler.evicted_bytes)} given back` : "by the stores",
    ],
    [
      "Pressure",
      pressed.length ? pressed[0].pressure : "none",
      pressed.length ? `on ${plural(pressed.length, "node")}` : "memory is enough",
    ],
  ];
  return items.map(([name, value, more]) =>
    el(
      "div",
      { class: "tile" },
      el("dt", {}, name),
      el("dd", {}, el("b", {}, value), el("span", { class: "small" }, more)),
    ),
  );
}

export function nodes(snapshot) {
  const rows = (snapshot.nodes || []).map((node) =>
    el(
      "tr",
      {},
      el("td", {}, node.address || node.id),
      el(
        "td",
        {},
        node.alive === false
          ? badge("dead")
          : badge(node.pressure || "none", node.pressure && node.pressure !== "none" ? "pressure" : "none"),
      ),
      numeric(count(node.cpus)),
      numeric(count(node.gpus)),
      el("td", {}, meter(node.memory_used_bytes, node.memory_bytes)),
      el("td", {}, meter(node.gpu_memory_used_bytes, node.gpu_memory_bytes)),
    ),
  );
  return table("Nodes", ["Node", "Pressure", "#CPUs", "#GPUs", "Memory", "GPU memory"], rows);
}

function meter(used, total) {
  if (!total) return "–";
  if (used === null || used === undefined) return bytes(total);
  const value = used;
  return [
    el("meter", { min: 0, max: total, value, high: 0.9 * total, "aria-label": "Memory used" }),
    ` ${bytes(used)} of ${bytes(total)}`,
  ];
}

export function models(snapshot) {
  const names = nodeNames(snapshot);
  const rows = (snapshot.models || []).flatMap((model) => {
    const replicas = model.replicas || [];
    const head = el(
      "tr",
      { class: "model-row" },
      el(
        "th",
        { scope: "row" },
        model.id,
        (model.aliases || []).length ? el("span", { class: "small" }, ` ${model.aliases.join(", ")}`) : null,
      ),
      el("td", {}, badge(model.state.replace("_", " "), model.state)),
      el(
        "td",
        { colspan: 7, class: "small" },
        model.reason || (replicas.length ? "" : `from the ${model.from || "config"}, no replica`),
      ),
    );
    return [head, ...replicas.map((replica) => replicaRow(replica, names))];
  });
  return table(
    "Models and replicas",
    [
      "Model / replica",
      "State",
      "#Running",
      "#Queued",
      "#Context",
      "#Weights",
      "#KV context",
      "#tok/s prefill",
      "Sequences",
    ],
    rows,
  );
}

/** Addresses by id: the ids of Ray's nodes are long and say nothing. */
function nodeNames(snapshot) {
  return new Map((snapshot.nodes || []).map(({ id, address }) => [id, address]));
}

function replicaRow(replica, names) {
  const known = (value, format) => numeric(value === null || value === undefined ? "–" : format(value));
  return el(
    "tr",
    {},
    el(
      "td",
      { class: "replica" },
      el("span", {}, replica.id),
      replica.node
        ? el("span", { class: "small", title: replica.node }, ` on ${names.get(replica.node) || replica.node}`)
        : null,
    ),
    el("td", {}, badge(replica.state || "unknown")),
    numeric(`${count(replica.n_running)}${replica.n_parallel ? ` of ${replica.n_parallel}` : ""}`),
    known(replica.n_queued, count),
    known(replica.n_ctx, count),
    known(replica.weights_bytes, bytes),
    known(replica.context_bytes, bytes),
    known(replica.prefill_tokens_per_s, count),
    el("td", {}, sequences(replica.sequences || [])),
  );
}

function sequences(all) {
  if (!all.length) return "";
  return el(
    "ul",
    { class: "sequences" },
    all.map((one) =>
      el(
        "li",
        { title: one.request_id || "" },
        badge(one.state || "?"),
        ` ${count(one.n_tokens)} tokens`,
        one.n_cached ? `, ${count(one.n_cached)} cached` : "",
      ),
    ),
  );
}

export function counters(snapshot) {
  const total = totalsOf(snapshot);
  const rows = (map) =>
    Object.entries(map)
      .filter(([, n]) => n > 0)
      .sort((a, b) => b[1] - a[1])
      .map(([name, n]) => el("tr", {}, el("td", {}, name), numeric(count(n))));
  return {
    hits: table("Hits by kind", ["Kind", "#Requests"], rows(total.hits)),
    saves: table("Saves by reason", ["Reason", "#Saves"], rows(total.saves)),
    evicted: table("Evictions by the stores", ["Cause", "#Objects"], rows(total.evicted)),
  };
}

export function evictions(snapshot) {
  const last = (snapshot.scheduler?.last || []).slice(-20).reverse();
  const now = snapshot.time ?? Date.now() / 1000;
  const rows = last.map((one) =>
    el(
      "tr",
      {},
      el("td", {}, ago(one.time, now)),
      el("td", {}, one.model),
      el("td", {}, one.reason),
      el("td", {}, one.kind || ""),
      numeric(bytes(one.bytes)),
      el("td", { class: "small" }, one.outcome && one.outcome !== "done" ? one.outcome : ""),
    ),
  );
  return table("The scheduler's last evictions", ["When", "Model", "Reason", "Released", "#Bytes", ""], rows);
}

/** Models of the hub, loaded or not. */
export function hub(list) {
  const rows = (list?.data || []).map(({ id, size, standing = {} }) =>
    el(
      "tr",
      {},
      el("td", {}, id),
      el("td", {}, badge(standing.phase || "unloaded")),
      numeric(bytes(size)),
      numeric(standing.memory_bytes ? bytes(standing.memory_bytes) : "–"),
      el("td", {}, standing.node || "–"),
      el("td", { class: "small" }, standing.reason || ""),
    ),
  );
  return table("Models of the hub", ["Name", "State", "#File", "#Reserved", "Node", ""], rows);
}
