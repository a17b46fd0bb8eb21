// A conversation is a tree of messages: an edit or a new reply is a sibling, and `selected` says which child
// of each message is shown. Plain data, so that it can be stored; nothing here knows the DOM.

export const ROOT = "root";

/** States of a message: "done", "streaming", "stopped" by the user, "lost" (its connection), "failed". */
export function newConversation(settings) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, settings: { ...settings }, messages: {}, selected: {} };
}

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");
}

/** Adds a message below `parent` and shows it; returns it. */
export function append(conversation, parent, fields) {
  const message = { id: newId(), parent, content: "", state: "done", created: Date.now(), ...fields };
  conversation.messages[message.id] = message;
  conversation.selected[parent] = message.id;
  conversation.updated = message.created;
  if (!conversation.title && message.role === "user") conversation.title = titleOf(message);
  return message;
}

function titleOf(message) {
  const text = message.content.trim() || message.attachments?.[0]?.name || "";
  return text.replace(/\s+/g, " ").slice(0, 60);
}

/** The children of `parent`, the oldest first. */
export function children(conversation, parent) {
  return Object.values(conversation.messages).filter((message) => message.parent === parent);
}

/** The messages that are shown, from the first one on. */
export function path(conversation) {
  const shown = [];
  for (let at = conversation.selected[ROOT]; at; at = conversation.selected[at]) shown.push(conversation.messages[at]);
  return shown;
}

/** The messages down to `id`, and it. */
export function lineage(conversation, id) {
  const found = [];
  for (let at = conversation.messages[id]; at; at = conversation.messages[at.parent]) found.unshift(at);
  return found;
}

/** Where a message stands among the answers or edits that took its place: `{index, all}`. */
export function siblings(conversation, id) {
  const all = children(conversation, conversation.messages[id].parent);
  return { all, index: all.findIndex((message) => message.id === id) };
}

/** Shows the sibling `step` further on; at an end nothing happens. Returns it, or null. */
export function step(conversation, id, by) {
  const { all, index } = siblings(conversation, id);
  const next = all[index + by];
  if (!next) return null;
  conversation.selected[next.parent] = next.id;
  return next;
}

/** A fence that no run of backticks in `text` closes. */
export function fenceFor(text) {
  const longest = Math.max(2, ...(text.match(/`+/g) || []).map((run) => run.length));
  return "`".repeat(longest + 1);
}

/** What a user's message says to the model: its files first, since they change least. */
export function textOf(message) {
  const files = (message.attachments || []).map(({ name, text }) => {
    const fence = fenceFor(text);
    return `File: ${name}\n${fence}\n${text}\n${fence}\n\n`;
  });
  return files.join("") + message.content;
}

function wire(message) {
  if (message.role === "tool") return { role: "tool", tool_call_id: message.callId, content: message.content };
  if (message.role === "user") return { role: "user", content: textOf(message) };
  const calls = message.calls?.length
    ? message.calls.map(({ id, name, arguments: text }) => ({
        id,
        type: "function",
        function: { name, arguments: text },
      }))
    : undefined;
  const thoughts = message.reasoning ? { reasoning_content: message.reasoning } : {};
  return { role: "assistant", content: message.content, ...thoughts, ...(calls && { tool_calls: calls }) };
}

/** What is sent for a reply below `parent`: the settings that are set, then the messages. */
export function requestBody(settings, messages) {
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const numbers = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (Number.isFinite(settings[name])) numbers[name] = settings[name];
  }
  const tools = settings.tools ? { tools: JSON.parse(settings.tools) } : {};
  return {
    model: settings.model,
    messages: [...system, ...messages.filter((message) => !isEmpty(message)).map(wire)],
    ...numbers,
    ...tools,
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
  };
}

/** A reply of which nothing came is not sent back. */
function isEmpty(message) {
  return message.role === "assistant" && !message.content && !message.reasoning && !message.calls?.length;
}
