// The list of conversations that this browser keeps.

import { button, dialog, el, redraw } from "../dom.js";
import { ago } from "../format.js";
import * as storage from "./storage.js";

/** `open(id)`, `create()`, `removed(id)` and, where it lies over the chat, `close()` are called; `draw(current)` marks the one that is shown. */
export class Sidebar {
  constructor({ open, create, removed, close }) {
    this.open = open;
    this.removed = removed;
    this.list = el("ul", { class: "conversations" });
    this.node = el(
      "aside",
      { class: "sidebar", "aria-label": "Conversations" },
      button("Back to the chat", close, { class: "quiet only-narrow" }),
      button("New chat", create, { class: "wide-button", title: "New chat (n)", "data-focus": "new" }),
      this.list,
    );
  }

  draw(current) {
    this.current = current;
    const now = Date.now() / 1000;
    redraw(
      this.list,
      storage.list().map(({ id, title, updated }) =>
        el(
          "li",
          { class: id === current ? "current" : "" },
          button(title || "Untitled", () => this.open(id), {
            class: "title",
            "aria-current": id === current ? "true" : false,
            title: `${title} · ${ago(updated / 1000, now)}`,
            "data-focus": id,
          }),
          button("×", () => this.remove(id, title), {
            class: "quiet",
            "aria-label": `Delete ${title || "conversation"}`,
            "data-focus": `delete ${id}`,
          }),
        ),
      ),
    );
  }

  async remove(id, title) {
    const sure = await dialog("Delete conversation", (close) => [
      el("p", {}, `Delete “${title || "Untitled"}” from this browser?`),
      el(
        "div",
        { class: "row end" },
        button("Cancel", () => close(false)),
        button("Delete", () => close(true), { class: "primary" }),
      ),
    ]);
    if (!sure) return;
    storage.remove(id);
    this.removed(id);
  }
}
