// Which model replies: a choice that tells the state of each.

import { json } from "../api.js";
import { el } from "../dom.js";

const REFRESH_MS = 15_000;

/** A `select` of the server's models. `chosen(id)` is called when the user picks one,
 * `told(error)` each time that the server was asked, with null where it answered. */
export class ModelChoice {
  constructor({ chosen, told }) {
    this.told = told;
    this.models = [];
    this.wanted = "";
    this.select = el("select", {
      id: "model",
      "aria-label": "Model",
      onchange: () => {
        this.wanted = this.select.value;
        chosen(this.wanted);
      },
    });
    this.state = el("span", { class: "badge" });
    this.node = el("span", { class: "model" }, this.select, this.state);
    setInterval(
      () => document.visibilityState === "visible" && !this.node.closest("[hidden]") && this.refresh(),
      REFRESH_MS,
    );
  }

  /** The model for the next reply, "" while none is known. */
  get value() {
    return this.select.value;
  }

  choose(id) {
    this.wanted = id || this.wanted;
    this.draw();
  }

  async refresh() {
    try {
      const { data } = await json("v1/models");
      this.models = data.map((model) => ({ id: model.id, state: stateOf(model), context: model.context_length }));
      this.draw();
      this.told(null);
    } catch (error) {
      this.told(error);
    }
  }

  draw() {
    const known = this.models.map(({ id }) => id);
    const missing = this.wanted && this.models.length && !known.includes(this.wanted);
    const shown = this.models.map(({ id, state }) => [id, state && state !== "loaded" ? `${id} (${state})` : id]);
    if (missing) shown.push([this.wanted, `${this.wanted} (not here)`]);
    const now = JSON.stringify(shown);
    if (now !== this.drawn) {
      this.drawn = now;
      this.select.replaceChildren(...shown.map(([id, label]) => el("option", { value: id }, label)));
    }
    this.select.value = this.wanted || known[0] || "";
    this.drawState();
  }

  drawState() {
    const model = this.models.find(({ id }) => id === this.select.value);
    this.state.textContent = model ? model.state : "";
    this.state.dataset.state = model ? model.state : "";
    this.state.title = model?.context ? `Context of ${model.context} tokens` : "";
  }
}

function stateOf({ status }) {
  return status?.failed ? "failed" : status?.value || "";
}
