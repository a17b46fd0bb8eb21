// Small charts as SVG: stacked areas, lines, stacked bars. Figures stand beside them as text, for everybody.

import { el, svg } from "../dom.js";
import { ago } from "../format.js";
import { binned } from "./samples.js";

const HEIGHT = 96;
const WIDTH = 480; // units of the drawing, which is stretched to where it stands
const MAX_BARS = 60;
const MAX_BAR = 12; // units

/**
 * A figure of `series` (`[{name, values}]`, each of as many values as there are `times`, unix seconds).
 * `kind` is "area", "line" or "bars"; `format` writes a value; `told(series)` is what the legend says of one,
 * its last value unless given.
 */
export function chart({ title, kind, series, times, format, told = (one) => format(one.values.at(-1) ?? 0) }) {
  const legend = series.map((one, index) =>
    el(
      "li",
      {},
      el("span", { class: `swatch ${colour(one, index)}`, "aria-hidden": "true" }),
      one.name,
      " ",
      el("b", {}, told(one)),
    ),
  );
  const nBars = Math.min(MAX_BARS, times.length);
  const shown = kind === "bars" ? series.map((one) => ({ ...one, values: binned(one.values, times, nBars) })) : series;
  const top = topOf(shown, kind !== "line");
  const span = times.length > 1 ? times.at(-1) - times[0] : 0;
  const summary = `${title}: ${series.map((one) => `${one.name} ${told(one)}`).join(", ") || "nothing yet"}`;
  return el(
    "figure",
    { class: "chart" },
    el("figcaption", {}, title, el("span", { class: "small" }, top ? `up to ${format(top)}` : "")),
    svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": summary },
      svg("path", { class: "grid", d: `M0 ${HEIGHT - 0.5}H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 .5H${WIDTH}` }),
      top ? DRAW[kind](shown, top, times) : [],
    ),
    el(
      "div",
      { class: "axis small", "aria-hidden": "true" },
      el("span", {}, span ? ago(0, span) : "collecting…"),
      el("span", {}, "now"),
    ),
    el("ul", { class: "legend" }, legend),
  );
}

/** What had to be computed is grey in every chart; the rest has the colours in turn. */
function colour({ name }, index) {
  return name === "computed" || name === "cold" ? "c6" : `c${(index % 5) + 1}`;
}

function topOf(series, stacked) {
  if (!series.length) return 0;
  const sums = series[0].values.map((_, index) => series.map((one) => one.values[index]));
  return Math.max(0, ...sums.map((values) => (stacked ? values.reduce((a, b) => a + b, 0) : Math.max(...values))));
}

const y = (value, top) => HEIGHT - 1 - (value / top) * (HEIGHT - 4);
const point = (px, py) => `${px.toFixed(1)} ${py.toFixed(1)}`;

/** Where each of `times` stands: the view may have been left for a while between two of them. */
function places(times) {
  const span = times.at(-1) - times[0] || 1;
  return times.map((time) => ((time - times[0]) / span) * WIDTH);
}

/** Values of a series stacked on those before it, as pairs of lower and upper. */
function stacked(series) {
  const below = series.length ? series[0].values.map(() => 0) : [];
  return series.map(({ values }) => values.map((value, index) => [below[index], (below[index] += value)]));
}

function areas(series, top, times) {
  const x = places(times);
  return stacked(series).map((pairs, index) => {
    const upper = pairs.map(([, high], at) => point(x[at], y(high, top)));
    const lower = pairs.map(([low], at) => point(x[at], y(low, top))).reverse();
    return svg("path", { class: `fill ${colour(series[index], index)}`, d: `M${[...upper, ...lower].join("L")}Z` });
  });
}

/** A value that is null was not known: the line begins behind it. */
function lines(series, top, times) {
  const x = places(times);
  return series.map((one, index) => {
    const points = one.values.flatMap((value, at) => (value === null ? [] : [point(x[at], y(value, top))]));
    return svg("path", { class: `stroke ${colour(one, index)}`, d: `M${points.join("L")}` });
  });
}

/** Each bar in the middle of its time, as wide as there is room, and no wider than `MAX_BAR`. */
function bars(series, top) {
  const slot = WIDTH / series[0].values.length;
  const width = Math.min(0.8 * slot, MAX_BAR);
  return stacked(series).map((pairs, index) =>
    pairs.map(([low, high], at) =>
      high > low
        ? svg("rect", {
            class: `fill ${colour(series[index], index)}`,
            x: ((at + 0.5) * slot - width / 2).toFixed(1),
            y: y(high, top).toFixed(1),
            width: width.toFixed(1),
            height: (y(low, top) - y(high, top)).toFixed(1),
          })
        : null,
    ),
  );
}

const DRAW = { area: areas, line: lines, bars };
