// Calls of the server that this page comes from. The API key lives in this tab's session storage alone.

const ROOT = new URL("../", import.meta.url);
const KEY = "erllama.key";

/** An answer that is an error. `status` is 0 when there was no answer. */
export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether another key may help. */
  get wantsKey() {
    return this.status === 401 || this.status === 403;
  }
}

export const apiKey = () => sessionStorage.getItem(KEY) || "";

export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

async function refusal(reply) {
  const text = await reply.text();
  try {
    const { error } = JSON.parse(text);
    return new ApiError(error.message || text, reply.status, error.code);
  } catch {
    return new ApiError(text.slice(0, 300) || `HTTP ${reply.status}`, reply.status);
  }
}

/** The answer to a request, which is a good one. Throws `ApiError`, or an `AbortError`. */
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const key = apiKey();
  const all = { accept: "*/*", ...(key && { authorization: `Bearer ${key}` }), ...headers };
  if (body !== undefined) all["content-type"] ??= "application/json";
  let reply;
  try {
    reply = await fetch(new URL(path, ROOT), { method, body, headers: all, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (!reply.ok) throw await refusal(reply);
  return reply;
}

/** The same, read as JSON. */
export async function json(path, options = {}) {
  const body = options.body === undefined ? undefined : JSON.stringify(options.body);
  return (await send(path, { ...options, body })).json();
}

/** `json`, or null for what this server does not have. */
export async function optionalJson(path, options) {
  try {
    return await json(path, options);
  } catch (error) {
    if (error.status === 404 || error.status === 501) return null;
    throw error;
  }
}
