// One streamed reply: asks for it, puts its pieces into a message, and can go on where it was lost.

import { ApiError, send } from "../api.js";
import { events } from "./events.js";

/**
 * Runs one reply into `message`, which it changes as pieces come; `changed` is called after each. `body` is
 * the text of the request: a stream goes on only for the same bytes. `lastId` is the last event that was seen.
 * Resolves when it has ended, however it did; `message.state` says how.
 */
export async function run(message, body, { headers, signal, changed, lastId }) {
  const clock = { sent: performance.now(), first: 0 };
  message.state = "streaming";
  message.error = undefined;
  changed();
  try {
    const all = { ...headers, ...(lastId && { "last-event-id": lastId }) };
    const reply = await send("v1/chat/completions", { method: "POST", body, headers: all, signal });
    message.requestId = (reply.headers.get("x-request-id") || "").split(",")[0] || message.requestId;
    message.state = await read(message, reply.body, clock, changed);
  } catch (error) {
    end(message, error);
  }
  message.progress = undefined;
  changed();
}

function end(message, error) {
  if (error.name === "AbortError") message.state = "stopped";
  else if (error instanceof ApiError && error.status) {
    message.state = "failed";
    message.error = { text: error.message, status: error.status, code: error.code };
  } else message.state = "lost"; // the network, or the server's process
}

/** The state in which the stream has ended. A stream without its last event was lost on the way. */
async function read(message, body, clock, changed) {
  for await (const { id, data } of events(body)) {
    if (id) message.eventId = id;
    if (data === "[DONE]") return message.error ? "failed" : "done";
    take(message, JSON.parse(data), clock);
    changed();
  }
  return "lost";
}

function take(message, chunk, clock) {
  if (chunk.error) {
    message.error = { text: chunk.error.message, code: chunk.error.code };
    return;
  }
  if (chunk.prompt_progress) message.progress = chunk.prompt_progress;
  if (chunk.prompt_progress?.cache_tier) message.stats = { ...message.stats, tier: chunk.prompt_progress.cache_tier };
  const choice = chunk.choices?.[0];
  if (choice?.delta) takeDelta(message, choice.delta, clock);
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  if (chunk.usage) message.stats = { ...message.stats, ...statsOf(chunk) };
}

function takeDelta(message, delta, clock) {
  const said = delta.content || delta.reasoning_content || delta.tool_calls?.length;
  if (said && !clock.first) {
    clock.first = performance.now();
    message.stats = { ttft: (clock.first - clock.sent) / 1000, ...message.stats };
    message.progress = undefined;
  }
  if (delta.content) message.content += delta.content;
  if (delta.reasoning_content) message.reasoning = (message.reasoning || "") + delta.reasoning_content;
  for (const piece of delta.tool_calls || []) takeCall((message.calls ??= []), piece);
}

function takeCall(calls, piece) {
  const call = (calls[piece.index] ??= { id: piece.id, name: "", arguments: "" });
  if (piece.id) call.id = piece.id;
  if (piece.function?.name) call.name = piece.function.name;
  call.arguments += piece.function?.arguments || "";
}

/** What the server says that the reply cost; `ttft`, in seconds, is measured here. */
function statsOf({ usage, timings }) {
  return {
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    completion: usage.completion_tokens,
    reasoning: usage.completion_tokens_details?.reasoning_tokens,
    perSecond: timings?.predicted_per_second,
    prefillMs: timings?.prompt_ms,
  };
}
