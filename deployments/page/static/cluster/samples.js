// What the cluster told, kept since the page was opened, as points of time that charts can show. Pure.
//
// Counters are totals since a process started: differences are taken per replica, so that one that ends
// takes nothing away, and one that starts again counts from zero.

const MAX_POINTS = 1800; // an hour of polls every two seconds
const SUMS = ["prompt_tokens", "cached_tokens", "completion_tokens", "evictions", "prefill_seconds_saved"];
const MAPS = ["hits", "saves", "evicted"];
const NODE_LOCAL = /^(ram|disk|memory)/; // other tiers are one place for all nodes

export class Samples {
  constructor() {
    this.points = [];
    this.counters = null; // of each replica, at the last poll
  }

  add(snapshot) {
    const replicas = replicasOf(snapshot);
    const now = new Map(replicas.map((replica) => [`${replica.model} ${replica.id}`, replica]));
    const deltas = this.counters ? deltasOf(now, this.counters) : empty();
    this.counters = now;
    this.points.push({
      time: snapshot.time ?? Date.now() / 1000,
      memory: memoryOf(snapshot),
      tiers: tiersOf(snapshot),
      deltas,
    });
    if (this.points.length > MAX_POINTS) this.points.shift();
  }
}

/** All replicas, each with the id of its model. */
export function replicasOf(snapshot) {
  return (snapshot.models || []).flatMap((model) =>
    (model.replicas || []).map((replica) => ({ ...replica, model: model.id })),
  );
}

const empty = () => ({
  ...Object.fromEntries(SUMS.map((name) => [name, 0])),
  ...Object.fromEntries(MAPS.map((name) => [name, {}])),
});

const grown = (now, before) => (now >= before ? now - before : now);

function deltasOf(now, before) {
  const sum = empty();
  for (const [id, replica] of now) {
    const old = before.get(id) || {};
    for (const name of SUMS) sum[name] += grown(replica[name] || 0, old[name] || 0);
    for (const name of MAPS) {
      for (const [key, n] of Object.entries(replica[name] || {})) {
        sum[name][key] = (sum[name][key] || 0) + grown(n, old[name]?.[key] || 0);
      }
    }
  }
  return sum;
}

/** What all replicas have counted since they started. */
export function totalsOf(snapshot) {
  return deltasOf(new Map(replicasOf(snapshot).map((replica, index) => [index, replica])), new Map());
}

function memoryOf(snapshot) {
  const nodes = (snapshot.nodes || []).filter((node) => node.memory_used_bytes);
  return Object.fromEntries(nodes.map((node) => [node.address || node.id, node.memory_used_bytes]));
}

/** Bytes, budget and objects by tier. The replicas of a node see the same tier, so the largest of them counts. */
export function tiersOf(snapshot) {
  const nodeOf = new Map(replicasOf(snapshot).map((replica) => [replica.id, replica.node]));
  const places = new Map();
  for (const tier of snapshot.tiers || []) {
    const place = NODE_LOCAL.test(tier.name)
      ? `${tier.name} ${tier.node ?? nodeOf.get(tier.replica) ?? ""}`
      : tier.name;
    if (!(places.get(place)?.bytes >= tier.bytes)) places.set(place, tier);
  }
  const found = {};
  for (const { name, bytes = 0, budget_bytes: budget, objects = 0 } of places.values()) {
    const sum = (found[name] ??= { bytes: 0, budget: 0, objects: 0 });
    sum.bytes += bytes;
    sum.objects += objects;
    sum.budget = budget && sum.budget !== null ? sum.budget + budget : null;
  }
  return found;
}

/** One line per name that any point has: `[{name, values}]`, `missing` where a point has none. */
export function series(points, pick, missing = 0) {
  const picked = points.map(pick);
  const names = [...new Set(picked.flatMap(Object.keys))].sort();
  return names.map((name) => ({ name, values: picked.map((values) => values[name] ?? missing) }));
}

/** Values of points as sums of `n` spans of equal time, from the first of `times` to the last. */
export function binned(values, times, n) {
  const bins = new Array(n).fill(0);
  const span = times.at(-1) - times[0] || 1;
  values.forEach((value, at) => {
    bins[Math.min(n - 1, Math.floor(((times[at] - times[0]) / span) * n))] += value;
  });
  return bins;
}
