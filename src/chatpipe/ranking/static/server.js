// Requests to the server: what there is to rank, and steps that are sent until they are answered.

const RETRY_SECONDS = [0.5, 1, 2, 5];
const TIMEOUT_SECONDS = 15;

async function call(path, options = {}) {
  const reply = await fetch(path, { ...options, signal: AbortSignal.timeout(TIMEOUT_SECONDS * 1000) });
  if (reply.status === 403) throw new Error("this address is no longer valid: open the one that chatpipe rank prints now");
  if (reply.status === 503) throw new Error((await reply.json()).error);
  if (reply.status >= 500) throw new Error(`the server has failed (${reply.status})`);
  return { status: reply.status, body: await reply.json() };
}

export const fetchView = () => call("/api/view");

export const post = (step) =>
  call("/api/act", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(step) });

/** Calls until the server answers; `tell` is called with the problem, and with "" when it is solved. */
export async function insist(request, tell) {
  for (let tries = 0; ; tries++) {
    try {
      const reply = await request();
      tell("");
      return reply;
    } catch (problem) {
      const why = problem instanceof TypeError || problem.name === "TimeoutError" ? "the server does not answer" : problem.message;
      tell(`Not saved yet: ${why}. Trying again.`);
      await new Promise((done) => setTimeout(done, 1000 * RETRY_SECONDS[Math.min(tries, RETRY_SECONDS.length - 1)]));
    }
  }
}

/** A key that no other step has. (`randomUUID` is missing if the page is not local.) */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
