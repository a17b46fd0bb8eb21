// Where a message is written: text, files as text, send and stop.

import { button, el, redraw } from "../dom.js";

const MAX_FILE = 1 << 20; // bytes: some 300,000 tokens, more than most contexts
const MAX_FILES = 20;

/** Calls `send(text, attachments)` and `stop()`. A text that could not be sent stays. */
export class Composer {
  constructor({ send, stop }) {
    this.attachments = [];
    this.send = send;
    this.input = el("textarea", {
      id: "prompt",
      rows: 1,
      placeholder: "Message",
      "aria-label": "Message",
      onkeydown: (event) => this.onKey(event),
      oninput: () => this.grow(),
      onpaste: (event) => this.onPaste(event),
    });
    this.files = el("div", { class: "files" });
    this.note = el("p", { class: "small error", role: "alert" });
    this.picker = el("input", {
      type: "file",
      multiple: true,
      hidden: true,
      onchange: () => this.attach([...this.picker.files]),
    });
    this.go = button("Send", () => this.submit(), { class: "primary", id: "send" });
    this.halt = button("Stop", stop, { class: "primary", id: "stop", hidden: true });
    this.node = el(
      "div",
      { class: "composer", ondragover: (event) => event.preventDefault(), ondrop: (event) => this.onDrop(event) },
      this.files,
      this.note,
      el(
        "div",
        { class: "row" },
        button("Attach", () => this.picker.click(), { class: "quiet", title: "Attach files as text" }),
        this.picker,
        this.input,
        this.go,
        this.halt,
      ),
    );
  }

  onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.submit();
  }

  onDrop(event) {
    event.preventDefault();
    this.attach([...event.dataTransfer.files]);
  }

  onPaste(event) {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    this.attach(files);
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight + 2, window.innerHeight * 0.4)}px`;
  }

  submit() {
    const text = this.input.value;
    if (!this.go.hidden && (text.trim() || this.attachments.length) && this.send(text, this.attachments)) this.clear();
  }

  clear() {
    this.input.value = "";
    this.attachments = [];
    this.note.textContent = "";
    this.drawFiles();
    this.grow();
  }

  set busy(on) {
    this.go.hidden = on;
    this.halt.hidden = !on;
  }

  async attach(files) {
    const refused = [];
    for (const file of files) {
      const text = file.size > MAX_FILE || this.attachments.length >= MAX_FILES ? null : await asText(file);
      if (text === null) refused.push(file.name);
      else this.attachments.push({ name: file.name, text });
    }
    this.picker.value = "";
    this.note.textContent = refused.length
      ? `Not attached: ${refused.join(", ")} (up to ${MAX_FILES} text files of 1 MiB).`
      : "";
    this.drawFiles();
  }

  drawFiles() {
    redraw(
      this.files,
      this.attachments.map((file, index) =>
        el(
          "span",
          { class: "chip" },
          file.name,
          button("×", () => this.detach(index), { "aria-label": `Remove ${file.name}` }),
        ),
      ),
    );
  }

  detach(index) {
    this.attachments.splice(index, 1);
    this.drawFiles();
  }
}

/** The file's text, null for what is none. */
async function asText(file) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}
