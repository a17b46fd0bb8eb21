// A conversation as a file. Pure.

import { fenceFor, path, textOf } from "./conversation.js";

const WHO = { user: "User", assistant: "Assistant", tool: "Tool result" };

/** The branch that is shown, as Markdown. */
export function asMarkdown(conversation) {
  const parts = [`# ${conversation.title || "Conversation"}`];
  if (conversation.settings.system) parts.push("## System", conversation.settings.system);
  for (const message of path(conversation)) {
    parts.push(`## ${WHO[message.role]}${message.model ? ` (${message.model})` : ""}`);
    if (message.reasoning) parts.push(`<details><summary>Reasoning</summary>\n\n${message.reasoning}\n\n</details>`);
    parts.push(message.role === "user" ? textOf(message) : message.content);
    for (const call of message.calls || []) {
      const fence = fenceFor(call.arguments);
      parts.push(`Call of \`${call.name}\`:\n\n${fence}json\n${call.arguments}\n${fence}`);
    }
  }
  return `${parts.filter(Boolean).join("\n\n")}\n`;
}

/** All branches, as they are kept here. */
export function asJson(conversation) {
  return `${JSON.stringify({ format: "erllama.conversation", version: 1, ...conversation }, null, 2)}\n`;
}

/** A name for its file, without the ending. */
export function fileName(conversation) {
  const name = (conversation.title || "conversation").toLowerCase().replace(/[^a-z0-9]+/g, "-");
  return name.replace(/^-|-$/g, "").slice(0, 40) || "conversation";
}
