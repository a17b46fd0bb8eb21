// The chat: conversations, the messages of one of them, and the replies that are being made.

import { announce, button, download, el, redraw } from "../dom.js";
import { count } from "../format.js";
import { Composer } from "./composer.js";
import { ROOT, append, lineage, newConversation, path, requestBody, siblings, step } from "./conversation.js";
import { asJson, asMarkdown, fileName } from "./export.js";
import { MessageView } from "./message.js";
import { ModelChoice } from "./models.js";
import { askEdit, askFormat, askResults } from "./questions.js";
import { run } from "./reply.js";
import { settingsForm } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import * as storage from "./storage.js";

const NEAR_END = 80; // pixels from the end at which the list follows what comes
const SAVE_MS = 2000;

export class ChatView {
  /** `askKey()` asks for an API key and resolves to whether one was given. */
  constructor(root, askKey) {
    this.askKey = askKey;
    this.running = new Map(); // id of a conversation -> its reply that is being made
    this.views = new Map();
    this.models = new ModelChoice({ chosen: (model) => this.setModel(model), told: (error) => this.told(error) });
    this.sidebar = new Sidebar({
      open: (id) => this.open(id),
      create: () => this.create(),
      removed: (id) => this.removed(id),
      close: () => this.toggleSidebar(false),
    });
    this.composer = new Composer({ send: (text, files) => this.send(text, files), stop: () => this.stop() });
    this.list = el("ol", { class: "messages", "aria-label": "Messages" });
    this.scroller = el("div", { class: "scroller", tabindex: "-1" }, this.list);
    this.panel = el("div", { class: "panel", id: "settings-panel", hidden: true });
    this.toggle = button("Settings", () => this.togglePanel(), {
      class: "quiet",
      "aria-expanded": "false",
      "aria-controls": "settings-panel",
      title: "Settings (s)",
    });
    this.problem = el("p", { class: "notice", role: "alert", hidden: true });
    this.aside = button("Chats", () => this.toggleSidebar(), { class: "quiet only-narrow", "aria-expanded": "false" });
    root.append(
      this.sidebar.node,
      el(
        "div",
        { class: "chat" },
        el(
          "div",
          { class: "toolbar" },
          this.aside,
          this.models.node,
          el("span", { class: "grow" }),
          button("Export", () => this.export(), { class: "quiet" }),
          this.toggle,
        ),
        this.problem,
        this.panel,
        this.scroller,
        this.composer.node,
      ),
    );
    addEventListener("pagehide", () => this.saveAll());
    setInterval(() => this.saveAll(), SAVE_MS);
    const last = storage.list()[0];
    if (last) this.open(last.id);
    else this.create();
  }

  shown() {
    this.models.refresh();
    this.composer.input.focus();
  }

  // conversations

  create() {
    this.show(newConversation(storage.loadSettings()));
    this.toggleSidebar(false);
    this.composer.input.focus();
  }

  open(id) {
    const conversation = this.running.get(id)?.conversation || storage.load(id);
    if (conversation) this.show(conversation);
    this.toggleSidebar(false);
  }

  removed(id) {
    this.running.get(id)?.controller.abort();
    this.running.delete(id);
    if (id === this.conversation.id) this.create();
    else this.sidebar.draw(this.conversation.id);
  }

  show(conversation) {
    this.conversation = conversation;
    this.models.choose(conversation.settings.model);
    redraw(
      this.panel,
      settingsForm(conversation.settings, () => this.settingsChanged()),
    );
    this.views.clear();
    this.draw();
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  draw() {
    const shown = path(this.conversation);
    for (const message of shown) {
      if (!this.views.has(message.id)) this.views.set(message.id, new MessageView(message, this));
      this.views.get(message.id).update();
    }
    const nodes = shown.map((message) => this.views.get(message.id).node);
    if (nodes.length) redraw(this.list, nodes);
    else
      redraw(
        this.list,
        el(
          "li",
          { class: "empty" },
          "Ask something. What the model has read once is kept, and costs nothing the next time.",
        ),
      );
    this.composer.busy = this.running.has(this.conversation.id);
    this.sidebar.draw(this.conversation.id);
  }

  save(conversation = this.conversation) {
    if (!Object.keys(conversation.messages).length) return;
    if (!storage.save(conversation)) this.tell("This browser has no room for the conversation: export it to keep it.");
  }

  saveAll() {
    for (const { conversation } of this.running.values()) this.save(conversation);
  }

  setModel(model) {
    this.conversation.settings.model = model;
    this.settingsChanged();
  }

  settingsChanged() {
    storage.saveSettings(this.conversation.settings);
    this.save();
    this.models.draw();
  }

  // replies

  send(text, attachments) {
    if (this.running.has(this.conversation.id) || !this.models.value) return false;
    const parent = path(this.conversation).at(-1)?.id || ROOT;
    const message = append(this.conversation, parent, {
      role: "user",
      content: text,
      ...(attachments.length && { attachments }),
    });
    this.reply(message.id);
    return true;
  }

  /** A new reply below `parent`. */
  reply(parent) {
    const settings = { ...this.conversation.settings, model: this.models.value };
    const message = append(this.conversation, parent, { role: "assistant", model: settings.model, request: settings });
    this.start(message);
  }

  regenerate(message) {
    if (!this.running.has(this.conversation.id)) this.reply(message.parent);
  }

  retry(message) {
    Object.assign(message, {
      content: "",
      reasoning: undefined,
      calls: undefined,
      stats: undefined,
      eventId: undefined,
      continuedFrom: undefined,
    });
    this.start(message);
  }

  /** Goes on behind the last event of a lost stream; where the server has none of it, behind its text. */
  async goOn(message) {
    if (message.state === "lost" && message.eventId) {
      await this.start(message, message.eventId);
      if (message.state !== "failed" || ![404, 409].includes(message.error.status)) return;
    }
    if (!message.content) {
      this.retry(message);
      return;
    }
    Object.assign(message, { continuedFrom: message.content.length, eventId: undefined });
    this.start(message);
  }

  bodyOf(conversation, message) {
    const above = lineage(conversation, message.parent);
    if (message.continuedFrom === undefined) return JSON.stringify(requestBody(message.request, above));
    const begun = { role: "assistant", content: message.content.slice(0, message.continuedFrom) };
    return JSON.stringify({ ...requestBody(message.request, [...above, begun]), continue_final_message: true });
  }

  async start(message, lastId) {
    const { conversation } = this;
    if (this.running.has(conversation.id)) return;
    const controller = new AbortController();
    this.running.set(conversation.id, { conversation, controller });
    message.finish = undefined;
    this.draw();
    this.follow();
    announce("The reply begins.");
    const headers = { "x-session-id": conversation.id };
    await run(message, this.bodyOf(conversation, message), {
      headers,
      signal: controller.signal,
      lastId,
      changed: () => this.changed(message),
    });
    this.running.delete(conversation.id);
    conversation.updated = Date.now();
    this.save(conversation);
    if (conversation === this.conversation) this.draw();
    this.ended(message);
  }

  async ended(message) {
    const { stats, state } = message;
    if (state === "done" && stats) {
      const cached = `${count(stats.cached)} of ${count(stats.prompt)} of the prompt cached`;
      announce(`The reply is complete: ${count(stats.completion)} tokens, ${cached}.`);
    }
    if (state === "stopped") announce("The reply was stopped.");
    if (state === "failed" && message.error.status === 401 && (await this.askKey())) this.retry(message);
  }

  stop() {
    this.running.get(this.conversation.id)?.controller.abort();
  }

  changed(message) {
    this.dirty = message;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      const view = this.views.get(this.dirty.id);
      if (!view || view.message !== this.dirty) return;
      const follows = this.isAtEnd();
      view.update();
      if (follows) this.follow();
    });
  }

  isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  follow() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  // what a message's view asks for

  siblings(message) {
    return siblings(this.conversation, message.id);
  }

  isLast(message) {
    return path(this.conversation).at(-1) === message;
  }

  step(message, by) {
    if (this.running.has(this.conversation.id) || !step(this.conversation, message.id, by)) return;
    this.save();
    this.draw();
    const shown = this.views.get(siblings(this.conversation, message.id).all.at(0)?.id);
    shown?.node.querySelector(".siblings button:not([disabled])")?.focus();
  }

  async edit(message) {
    const content = await askEdit(message.content);
    if (!content?.trim() || this.running.has(this.conversation.id)) return;
    const { attachments } = message;
    const fields = { role: "user", content, ...(attachments && { attachments }) };
    this.reply(append(this.conversation, message.parent, fields).id);
  }

  /** The conversation goes on with a result for each call. */
  async answerCalls(message) {
    const results = await askResults(message.calls);
    if (!results) return;
    let parent = message.id;
    message.calls.forEach(({ id }, index) => {
      parent = append(this.conversation, parent, { role: "tool", callId: id, content: results[index] }).id;
    });
    this.reply(parent);
  }

  // around it

  togglePanel() {
    this.panel.hidden = !this.panel.hidden;
    this.toggle.setAttribute("aria-expanded", String(!this.panel.hidden));
    if (!this.panel.hidden) this.panel.querySelector("textarea").focus();
  }

  toggleSidebar(on) {
    const open = this.sidebar.node.classList.toggle("open", on);
    this.aside.setAttribute("aria-expanded", String(open));
  }

  async export() {
    const name = fileName(this.conversation);
    const format = await askFormat();
    if (format === "md") download(`${name}.md`, "text/markdown", asMarkdown(this.conversation));
    if (format === "json") download(`${name}.json`, "application/json", asJson(this.conversation));
  }

  /** What became of asking for the models: `error` is null when they came. The key is asked for once. */
  async told(error) {
    this.tell(error ? error.message : "");
    if (error?.status !== 401 || this.declined) return;
    this.declined = !(await this.askKey());
    if (!this.declined) this.models.refresh();
  }

  tell(text) {
    this.problem.textContent = text;
    this.problem.hidden = !text;
  }
}
