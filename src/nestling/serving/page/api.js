// Talking to the server: JSON, streams of events, and the token where one is needed.

import { byId, memory } from "./dom.js";

/** What the server refused, in its own words. */
export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let token = sessionStorage.getItem("nestling.token");
let asking = null;

/** Ask for the token once, however many requests found it missing. */
function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token-dialog");
    dialog.addEventListener(
      "close",
      () => {
        token = byId("token").value.trim();
        if (!/^[\x21-\x7e]*$/.test(token)) token = ""; // cannot be sent in a header, so it cannot be right
        byId("token").value = "";
        sessionStorage.setItem("nestling.token", token);
        asking = null;
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

/** GET, or POST when there is a body. Resolves to a Response that is fine. */
async function request(path, body, signal, method = body === undefined ? "GET" : "POST") {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const identity = memory.get("identity");
  if (identity) headers["X-Nestling-Identity"] = identity;
  const options = { headers, signal, method };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  const response = await fetch(path, options);
  if (response.status === 401) {
    await askForToken();
    return request(path, body, signal, method);
  }
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({ error: { message: response.statusText } }));
    throw new ApiError(error.message, response.status, error.code);
  }
  return response;
}

/** The JSON at a path, or the reply to a POSTed body. */
export async function json(path, body) {
  return (await request(path, body)).json();
}

/** The reply to a DELETE. */
export async function remove(path) {
  return (await request(path, undefined, undefined, "DELETE")).json();
}

/** Let the server sign an identity for this browser, once: judgments are counted by person. */
export async function identify() {
  if (!memory.get("identity")) memory.set("identity", (await json("/api/identity", {})).identity);
}

/** The events of a stream. Ends at [DONE]; throws on an error event and when the connection breaks off. */
export async function* stream(path, body, signal) {
  const response = await request(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError("", 0, "connection_lost");
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        const data = event.slice("data: ".length);
        if (data === "[DONE]") return;
        const parsed = JSON.parse(data);
        if (parsed.error?.message) throw new ApiError(parsed.error.message, 200, parsed.error.code);
        yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
