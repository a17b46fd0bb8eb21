// The requests that were served lately: what of each prompt was cached, and why the rest was not.

import { optionalJson } from "../api.js";
import { button, el, redraw } from "../dom.js";
import { ago, count, seconds, share } from "../format.js";
import { causeText, showWhy } from "../why.js";

const LIMIT = 30;

export class RequestPanel {
  constructor() {
    this.rows = el("tbody", {});
    const heads = ["When", "Model", "Tenant", "Prompt", "Cached", "Cost", "Why the rest was computed", ""];
    const numeric = new Set(["Prompt", "Cached", "Cost"]);
    this.node = el(
      "section",
      { class: "card wide-card", "aria-label": "Recent requests", hidden: true },
      el("header", {}, el("h2", {}, "Recent requests")),
      el(
        "div",
        { class: "wide" },
        el(
          "table",
          { class: "data" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              heads.map((head) => el("th", { scope: "col", class: numeric.has(head) ? "number" : "" }, head)),
            ),
          ),
          this.rows,
        ),
      ),
    );
  }

  /** Shows what the server tells now; nothing where it does not tell of requests. Throws `ApiError`. */
  async refresh() {
    const list = await optionalJson(`erllama/v1/requests?limit=${LIMIT}`);
    const requests = list?.data || [];
    this.node.hidden = !requests.length;
    const now = Date.now() / 1000;
    redraw(
      this.rows,
      requests.map((request) => row(request, now)),
    );
  }
}

function row(request, now) {
  const { id, model, tenant, time, cause, prompt_tokens: prompt, cached_tokens: cached, cost_ms: cost } = request;
  const number = (text) => el("td", { class: "number" }, text);
  return el(
    "tr",
    {},
    el("td", {}, ago(time, now)),
    el("td", {}, model),
    el("td", {}, tenant || "–"),
    number(count(prompt)),
    number(share(cached, prompt)),
    number(cost === null || cost === undefined ? "–" : seconds(cost / 1000)),
    el("td", { title: causeText(cause) }, (cause || "–").replace(/_/g, " ")),
    el(
      "td",
      {},
      button("Why", () => showWhy(id), {
        class: "quiet",
        "data-focus": `why ${id}`,
        "aria-label": `Why: request ${id}`,
      }),
    ),
  );
}
