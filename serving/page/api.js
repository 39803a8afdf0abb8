// Requests to the server that the page came from. Every failure is an ApiError with words for people.

const TIMEOUT_MS = 10_000;
const KEY = "beamrec-key";

export class ApiError extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
  }
}

export const key = () => sessionStorage.getItem(KEY) || "";
export const setKey = (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY));

/** Headers that carry the key, {} without one. */
export const credentials = () => (key() ? {Authorization: `Bearer ${key()}`} : {});

/** The JSON of a path; parameters that are null or "" are left out, arrays are repeated. */
export async function get(path, parameters = {}, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "") query.append(name, each);
    }
  }
  const text = query.toString();
  return request(text ? `${path}?${text}` : path, {headers: credentials(), signal});
}

/** Posts a document; the JSON of the answer. */
export async function post(path, document) {
  return request(path, {method: "POST", body: JSON.stringify(document),
                        headers: {"Content-Type": "application/json", ...credentials()}});
}

async function request(path, options) {
  const late = AbortSignal.timeout(TIMEOUT_MS);
  let response;
  try {
    response = await fetch(path, {...options, cache: "no-store", signal: options.signal ? AbortSignal.any([late, options.signal]) : late});
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "No answer", late.aborted ? "The server took too long to answer." : "The server cannot be reached.");
  }
  const type = response.headers.get("Content-Type") || "";
  const body = type.includes("json") ? await response.json() : {};
  if (response.ok) return body;
  const hint = response.status === 401 || response.status === 403 ? " Enter a key with that role under “API key” below." : "";
  throw new ApiError(response.status, body.title || `Status ${response.status}`, (body.detail || response.statusText) + hint);
}

/** Runs a function now and then every `ms` until `signal` aborts; not while the page is hidden. */
export async function every(ms, signal, work) {
  while (!signal.aborted) {
    if (!document.hidden) await work();
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, {once: true});
    });
  }
}
